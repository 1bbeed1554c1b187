-- The records of a ledger other than its core: the operations log and the profiles. Each call is one verb.
--
-- The script begins with `fence.lua`. KEYS are always all keys of these records, and that of the fleet. ARGV has, after
-- the texts of `fence.lua`, the verb and its arguments.
--
-- Times are texts of 16 hexadecimal digits, whose order is that of the times: a number of Lua is exact up to 2^53 only.
-- Numbers of Lua count records here. Amounts are decimal texts, which only HINCRBY adds, with 64 bits.
--
-- An index is a sorted set whose members are in the order of their bytes: a time, and then the key of the record.

local key = {}
for at, name in ipairs({
  'counters', 'adjustments', 'adjustments_ended', 'adjustment_times', 'alerts', 'alert_keys', 'alert_times',
  'alert_subjects', 'acknowledgements', 'refusal_counts', 'refusal_minutes', 'refusals', 'refusal_order', 'anomalies',
  'anomaly_times', 'notes', 'audit', 'profiles', 'profile_users', 'profile_changes',
}) do
  key[name] = KEYS[at]
end

local KEPT_REFUSALS = 10000
local KEPT_ANOMALIES = 2000
local ANOMALY_FIELDS = {'times ', 'amount ', 'first ', 'last '}
local SLICE = 500
local TIME = 16 -- digits
local ALERT_KEY = 3 * TIME -- limit, window and threshold come before the subject

local function next_number(name)
  return call('HINCRBY', key.counters, name, 1)
end

local function decimal(number)
  return string.format('%d', number)
end

-- The number of a new record: the next one, or that of another log, which later ones follow.
local function number_of(name, given)
  if given == '0' then
    return decimal(next_number(name))
  end
  if tonumber(call('HGET', key.counters, name) or 0) < tonumber(given) then
    call('HSET', key.counters, name, given)
  end
  return given
end

local function padded(number)
  return string.format('%016x', number)
end

local function index(name, member)
  call('ZADD', name, 0, member)
end

-- Adds, up to the bounds of 64 bits: an error after other writes would leave half of the verb done.
local function add(name, field, amount)
  if type(redis.pcall('HINCRBY', name, field, amount)) == 'table' then
    call('HSET', name, field, string.sub(amount, 1, 1) == '-' and '-9223372036854775808' or '9223372036854775807')
  end
end

local function values_of(name, fields)
  local values = {}
  for first = 1, #fields, SLICE do
    for _, value in ipairs(call('HMGET', name, unpack(fields, first, math.min(first + SLICE - 1, #fields)))) do
      values[#values + 1] = value or ''
    end
  end
  return values
end

-- Deletes at most a slice of records before a time.
local function delete_older(times, before, delete)
  for _, member in ipairs(call('ZRANGEBYLEX', times, '-', '(' .. before, 'LIMIT', 0, SLICE)) do
    delete(string.sub(member, TIME + 1), member)
    call('ZREM', times, member)
  end
end

local position = 3
local function argument()
  position = position + 1
  return ARGV[position]
end

local function has_arguments()
  return position < #ARGV
end

local verbs = {}

-- ── adjustments: '{until}{JSON}' by number, and the time of an early end ─────────────────────────────────────────────

local function count_adjustment()
  call('HINCRBY', key.counters, 'adjustments-version', 1)
end

local function delete_adjustment(number)
  local value = call('HGET', key.adjustments, number)
  if value then
    call('HDEL', key.adjustments, number)
    call('HDEL', key.adjustments_ended, number)
    call('ZREM', key.adjustment_times, string.sub(value, 1, TIME) .. number)
  end
end

function verbs.adjust()
  local given, ends, record, ended = argument(), argument(), argument(), argument()
  if call('HEXISTS', key.adjustments, given) == 1 then
    return given
  end
  local number = number_of('adjustments', given)
  call('HSET', key.adjustments, number, ends .. record)
  if ended ~= '' then
    call('HSET', key.adjustments_ended, number, ended)
  end
  index(key.adjustment_times, ends .. number)
  count_adjustment()
  return number
end

function verbs.end_adjustment()
  local number, at = argument(), argument()
  local value = call('HGET', key.adjustments, number)
  if not value or string.sub(value, 1, TIME) <= at or call('HEXISTS', key.adjustments_ended, number) == 1 then
    return 0
  end
  call('HSET', key.adjustments_ended, number, at)
  count_adjustment()
  return 1
end

function verbs.adjustments()
  return {call('HGETALL', key.adjustments), call('HGETALL', key.adjustments_ended)}
end

function verbs.erase_adjustments()
  while has_arguments() do
    delete_adjustment(argument())
  end
  count_adjustment()
end

-- ── alerts: '{time}{length of the key}|{key}{details}' by number; their numbers by key, and by subject and time ──────

local function alert_parts(value)
  local length, rest = string.match(string.sub(value, TIME + 1), '^(%d+)|(.*)$')
  return string.sub(value, 1, TIME), string.sub(rest, 1, tonumber(length))
end

local function subject_member(alert_key, at, number)
  return string.sub(alert_key, ALERT_KEY + 1) .. '\n' .. at .. padded(number)
end

local function delete_alert(number)
  local value = call('HGET', key.alerts, number)
  if value then
    local at, alert_key = alert_parts(value)
    call('HDEL', key.alerts, number)
    call('HDEL', key.acknowledgements, number)
    call('HDEL', key.alert_keys, alert_key)
    call('ZREM', key.alert_times, at .. number)
    call('ZREM', key.alert_subjects, subject_member(alert_key, at, number))
  end
end

function verbs.alert()
  local given, alert_key, at, details, acknowledgement = argument(), argument(), argument(), argument(), argument()
  if call('HEXISTS', key.alert_keys, alert_key) == 1 or call('HEXISTS', key.alerts, given) == 1 then
    return 0
  end
  local number = number_of('alerts', given)
  call('HSET', key.alerts, number, at .. decimal(#alert_key) .. '|' .. alert_key .. details)
  call('HSET', key.alert_keys, alert_key, number)
  index(key.alert_times, at .. number)
  index(key.alert_subjects, subject_member(alert_key, at, number))
  if acknowledgement then
    call('HSET', key.acknowledgements, number, acknowledgement)
  end
  return 1
end

function verbs.every_alert()
  return {call('HGETALL', key.alerts), call('HGETALL', key.acknowledgements)}
end

function verbs.alerts()
  local since = argument()
  local numbers = {}
  while has_arguments() do
    local subject = argument()
    -- No digit is above 'f'.
    for _, member in ipairs(call('ZRANGEBYLEX', key.alert_subjects, '[' .. subject .. '\n' .. since, '(' .. subject .. '\ng')) do
      if #member == #subject + 1 + 2 * TIME then -- else it is of a subject that has a line feed itself
        numbers[#numbers + 1] = decimal(tonumber(string.sub(member, -TIME), 16))
      end
    end
  end
  return {numbers, values_of(key.alerts, numbers), values_of(key.acknowledgements, numbers)}
end

function verbs.acknowledge_alert()
  local number, record = argument(), argument()
  if call('HEXISTS', key.alerts, number) == 0 then
    return 0
  end
  return call('HSETNX', key.acknowledgements, number, record)
end

function verbs.erase_alerts()
  while has_arguments() do
    delete_alert(argument())
  end
end

-- ── refusals: their number by '{minute}{JSON}', and '{time}{details}' by ref, in the order of their arrival ──────────

function verbs.count_refusals()
  for _ = 1, tonumber(argument()) do
    local field, times = argument(), argument()
    add(key.refusal_counts, field, times)
    index(key.refusal_minutes, field)
  end
  while has_arguments() do
    local ref, at, details = argument(), argument(), argument()
    call('HSET', key.refusals, ref, at .. details)
    call('ZADD', key.refusal_order, next_number('refusals'), ref)
  end
  local surplus = call('ZCARD', key.refusal_order) - KEPT_REFUSALS
  while surplus > 0 do
    local oldest = call('ZPOPMIN', key.refusal_order, math.min(surplus, SLICE))
    for at = 1, #oldest, 2 do
      call('HDEL', key.refusals, oldest[at])
    end
    surplus = surplus - SLICE
  end
end

function verbs.refusals()
  local refs = call('ZRANGE', key.refusal_order, 0, -1)
  return {refs, values_of(key.refusals, refs)}
end

-- A page of counts, from `first` on.
function verbs.refusal_counts()
  local first, most = argument(), argument()
  local fields = call('ZRANGEBYLEX', key.refusal_minutes, first, '+', 'LIMIT', 0, most)
  return {fields, values_of(key.refusal_counts, fields)}
end

function verbs.erase_refusal_counts()
  while has_arguments() do
    local field = argument()
    call('HDEL', key.refusal_counts, field)
    call('ZREM', key.refusal_minutes, field)
  end
end

function verbs.erase_refusals()
  while has_arguments() do
    local ref = argument()
    call('HDEL', key.refusals, ref)
    call('ZREM', key.refusal_order, ref)
  end
end

-- ── anomalies: four fields for each, by JSON of kind and object ──────────────────────────────────────────────────────

local function count_anomaly(id, others, times, amount, first, last)
  local former_last = call('HGET', key.anomalies, 'last ' .. id)
  if not former_last and call('HLEN', key.anomalies) >= KEPT_ANOMALIES * #ANOMALY_FIELDS then
    id = others
    former_last = call('HGET', key.anomalies, 'last ' .. id)
  end
  add(key.anomalies, 'times ' .. id, times)
  add(key.anomalies, 'amount ' .. id, amount)
  local former_first = call('HGET', key.anomalies, 'first ' .. id)
  if not former_first or first < former_first then
    call('HSET', key.anomalies, 'first ' .. id, first)
  end
  if not former_last or former_last < last then
    if former_last then
      call('ZREM', key.anomaly_times, former_last .. id)
    end
    call('HSET', key.anomalies, 'last ' .. id, last)
    index(key.anomaly_times, last .. id)
  end
end

function verbs.count_anomalies()
  while has_arguments() do
    count_anomaly(argument(), argument(), argument(), argument(), argument(), argument())
  end
end

local function delete_anomaly(id)
  for _, name in ipairs(ANOMALY_FIELDS) do
    call('HDEL', key.anomalies, name .. id)
  end
end

-- ── notes, the audit, retention ──────────────────────────────────────────────────────────────────────────────────────

function verbs.note()
  local name, text = argument(), argument()
  if text then
    call('HSET', key.notes, name, text)
  else
    call('HDEL', key.notes, name)
  end
end

function verbs.audit()
  local given, record = argument(), argument()
  call('HSETNX', key.audit, number_of('audit', given), record)
end

function verbs.maintain()
  local minute, year = argument(), argument()
  delete_older(key.refusal_minutes, minute, function(_, field)
    call('HDEL', key.refusal_counts, field)
  end)
  delete_older(key.alert_times, year, delete_alert)
  delete_older(key.anomaly_times, year, delete_anomaly)
  delete_older(key.adjustment_times, year, delete_adjustment)
end

-- ── profiles: '{time}{change number}{JSON}' by user; users, and change numbers with users ────────────────────────────

local function delete_profile_change(user, value)
  call('ZREM', key.profile_changes, string.sub(value, TIME + 1, 2 * TIME) .. user)
end

function verbs.put()
  while has_arguments() do
    local user, at, record = argument(), argument(), argument()
    local former = call('HGET', key.profiles, user)
    if not former or string.sub(former, 1, TIME) < at then
      local number = padded(next_number('profiles'))
      if former then
        delete_profile_change(user, former)
      end
      call('HSET', key.profiles, user, at .. number .. record)
      index(key.profile_users, user)
      index(key.profile_changes, number .. user)
    end
  end
end

function verbs.remove()
  local user = argument()
  local former = call('HGET', key.profiles, user)
  if not former then
    return 0
  end
  next_number('profiles')
  delete_profile_change(user, former)
  call('HDEL', key.profiles, user)
  call('ZREM', key.profile_users, user)
  return 1
end

function verbs.page()
  local after, most = argument(), argument()
  return values_of(key.profiles, call('ZRANGEBYLEX', key.profile_users, '(' .. after, '+', 'LIMIT', 0, most))
end

function verbs.changes()
  local first, most = argument(), argument()
  local users = call('ZRANGEBYLEX', key.profile_changes, '[' .. first, '+', 'LIMIT', 0, most)
  for at, member in ipairs(users) do
    users[at] = string.sub(member, TIME + 1)
  end
  return values_of(key.profiles, users)
end

return verbs[ARGV[3]]()
