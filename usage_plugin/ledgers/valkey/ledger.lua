-- The Valkey ledger: every verb, many of them in one call, which the server runs in one atomic step.
--
-- The script is four files, one after the other: `fence.lua`, this one with the verbs of the ledger, `fleet.lua` with those
-- of the register, and `batch.lua`, which does them.
--
-- KEYS are always all keys of the ledger, under one hash tag. ARGV has, after the texts of `fence.lua`:
--   the name of the sender of a batch; '' for the keeper, the command line and the register
--   the number of the batch
--   the time of its sender, in microseconds
--   the verbs, each with its arguments; lists are arrays of texts in JSON
--
-- First everything is read and decided, then everything is written. An error before the first write leaves nothing done,
-- and so does a server without memory, which rejects the first write.
--
-- A number of Lua is exact up to 2^53, and amounts go up to 2^63 - 1. So each is split at nine decimal digits: `high`
-- and `low` with value = high * 10^9 + low and 0 <= low < 10^9. Amounts are stored as decimal text.

local META, ACCOUNTS, INDEX, RESERVATIONS, DRAFTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local ENDED, ENDED_BEFORE, ABANDONED, OUTBOX, SENDERS = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local MEMBERS = KEYS[11]

local BASE = 1000000000
local MOST_HIGH, MOST_LOW = 9223372036, 854775807
local GENERATION = 600000000
local KEPT_TOMBSTONES = 144
local KEPT_ENTRIES = 2000
local CHUNK = 1000 -- of arguments: Lua's stack has room for 8000
local RELEASED = '-'
local MOST_CLOCK_DIFFERENCE = 5000000 -- as in `ledger_batch`

local SENDER, BATCH_NUMBER, SENT_AT = ARGV[3], ARGV[4], tonumber(ARGV[5])

-- A sender is stored as the number of its last batch, the generation, and as JSON the settlements of the last batch that
-- had any: a host may be cut off for hours before it can send them again.
local last_of_sender
if SENDER ~= '' then
  last_of_sender = call('HGET', SENDERS, SENDER)
  if last_of_sender and tonumber(string.match(last_of_sender, '^%d+')) >= tonumber(BATCH_NUMBER) then
    return redis.error_reply('STALE a later batch of this sender was done')
  end
end

-- ── exact numbers ───────────────────────────────────────────────────────────────────────────────────────────────────

local function split(text)
  local is_negative = string.byte(text) == 45
  local digits = is_negative and string.sub(text, 2) or text
  local length = #digits
  local high, low = 0, 0
  if length > 9 then
    high, low = tonumber(string.sub(digits, 1, length - 9)), tonumber(string.sub(digits, length - 8))
  else
    low = tonumber(digits)
  end
  if is_negative then
    high, low = -high, -low
    if low < 0 then
      high, low = high - 1, low + BASE
    end
  end
  return high, low
end

local function joined(high, low)
  local sign = ''
  if high < 0 then
    sign = '-'
    if low > 0 then
      high, low = high + 1, low - BASE
    end
    high, low = -high, -low
  end
  if high == 0 then
    return sign .. string.format('%d', low)
  end
  return string.format('%s%d%09d', sign, high, low)
end

local function sum(high, low, more_high, more_low)
  high, low = high + more_high, low + more_low
  if low >= BASE then
    return high + 1, low - BASE
  end
  return high, low
end

local function is_less(high, low, other_high, other_low)
  return high < other_high or (high == other_high and low < other_low)
end

local function bounded(high, low)
  if is_less(MOST_HIGH, MOST_LOW, high, low) then
    return MOST_HIGH, MOST_LOW
  end
  return high, low
end

-- ── what is read, changed here, and written at the end ──────────────────────────────────────────────────────────────

local meta = {}       -- the fields of META that were read or changed
local meta_changes = {}
local accounts = {}   -- by field: {end_high, end_low, spent_high, spent_low, reserved_high, reserved_low}
local changed = {}    -- the fields of changed accounts
local created = {}    -- the fields of new accounts
local reservations = {} -- by id: the content, or false
local drafts = {}
local is_changed = {} -- ids of reservations that were made, changed or ended
local ended = {}      -- by id: 'key number' of a settlement with a key, RELEASED, or ''
local settlements = {} -- of this batch, see `end_sent_last`: id, 'key number'
local tombstones = {}
local entries = {}    -- the new entries of the outbox: number, event

local function meta_number(name)
  if meta[name] == nil then
    meta[name] = tonumber(call('HGET', META, name) or '0')
  end
  return meta[name]
end

local function set_meta(name, value)
  meta[name] = value
  meta_changes[name] = value
end

local function parsed(field, value)
  local account = {0, 0, 0, 0, 0, 0}
  if value then
    local ends, spent, reserved = string.match(value, '^(%S+) (%S+) (%S+)$')
    account[1], account[2] = split(ends)
    account[3], account[4] = split(spent)
    account[5], account[6] = split(reserved)
    account.exists = true
  end
  accounts[field] = account
  return account
end

local function account_of(field)
  return accounts[field] or parsed(field, call('HGET', ACCOUNTS, field))
end

local function value_of(account)
  return joined(account[1], account[2]) .. ' ' .. joined(account[3], account[4]) .. ' ' .. joined(account[5], account[6])
end

-- Adds to an account, and creates it. `sign` is that of the reserved amount; '0' adds nothing.
local function change(field, ends, spent, reserved, sign)
  local account = account_of(field)
  if not account.exists then
    account.exists = true
    created[field] = true
  end
  local high, low = split(ends)
  if is_less(account[1], account[2], high, low) then
    account[1], account[2] = high, low
  end
  if spent ~= '0' then
    account[3], account[4] = bounded(sum(account[3], account[4], split(spent)))
  end
  if reserved ~= '0' then
    high, low = split(reserved)
    if sign < 0 then
      high, low = -high, -low
      if low < 0 then
        high, low = high - 1, low + BASE
      end
    end
    account[5], account[6] = bounded(sum(account[5], account[6], high, low))
  end
  changed[field] = true
end

-- The fields of a window's buckets that exist, oldest first. `oldest` is the field of the oldest possible one.
local function buckets_since(oldest)
  local fields = {}
  for _, field in ipairs(call('ZRANGEBYLEX', INDEX, '[' .. oldest, '(' .. string.sub(oldest, 1, -18) .. '\11')) do
    if #field == #oldest then -- else it is of a subject that has a line feed itself
      fields[#fields + 1] = field
    end
  end
  local has_new = false
  for field in pairs(created) do
    if #field == #oldest and field >= oldest and string.sub(field, 1, -17) == string.sub(oldest, 1, -17) then
      fields[#fields + 1] = field
      has_new = true
    end
  end
  if has_new then
    table.sort(fields)
  end
  return fields
end

local function sum_since(oldest)
  local spent_high, spent_low, reserved_high, reserved_low = 0, 0, 0, 0
  for _, field in ipairs(buckets_since(oldest)) do
    local account = account_of(field)
    spent_high, spent_low = sum(spent_high, spent_low, account[3], account[4])
    reserved_high, reserved_low = sum(reserved_high, reserved_low, account[5], account[6])
  end
  spent_high, spent_low = bounded(spent_high, spent_low)
  reserved_high, reserved_low = bounded(reserved_high, reserved_low)
  return {0, 0, spent_high, spent_low, reserved_high, reserved_low}
end

local function content_of(id)
  if reservations[id] == nil then
    reservations[id] = call('HGET', RESERVATIONS, id)
  end
  return reservations[id]
end

local function draft_of(id)
  if drafts[id] == nil then
    drafts[id] = call('HGET', DRAFTS, id)
  end
  return drafts[id]
end

local settlements_sent_last

-- The end of an id, if the sender has settled it with its last batch.
local function end_sent_last(id)
  if not last_of_sender or not string.find(last_of_sender, cjson.encode(id), 1, true) then
    return nil -- as nearly always, and without decoding
  end
  if not settlements_sent_last then
    settlements_sent_last = {}
    local list = cjson.decode(string.match(last_of_sender, '^%d+ %d+ (.+)$'))
    for at = 1, #list, 2 do
      settlements_sent_last[list[at]] = list[at + 1]
    end
  end
  return settlements_sent_last[id]
end

local function note_settlement(id, ending)
  ended[id] = ending
  settlements[#settlements + 1] = id
  settlements[#settlements + 1] = ending
end

local function end_of(id)
  if ended[id] ~= nil then
    return ended[id]
  end
  local stored = call('HGET', ENDED, id) or call('HGET', ENDED_BEFORE, id)
  if not stored and call('ZSCORE', ABANDONED, id) then
    return '' -- abandoned or recovered, hours ago
  end
  return stored or end_sent_last(id)
end

-- A reservation is stored as 'balances before|JSON of worker, time, and for each hold: field, end, amount, if lost'.
local function answer_and_content(stored)
  return string.match(stored, '^([^|]*)|(.*)$')
end

-- Ends an open reservation, and returns its holds and its draft; nothing if it is not open.
local function take(id)
  local stored = content_of(id)
  if not stored then
    return nil
  end
  local _, content = answer_and_content(stored)
  local draft = draft_of(id)
  reservations[id], drafts[id], is_changed[id] = false, false, true
  return cjson.decode(content), draft
end

local function free_holds(holds)
  for at = 3, #holds, 4 do
    change(holds[at], holds[at + 1], '0', holds[at + 2], -1)
  end
end

-- The answer to a settlement: its number, and the balances of the accounts that it has freed or charged.
local function settled(seq, holds, charges)
  local answer, is_in = {'settled', seq}, {}
  local function add(field)
    if not is_in[field] then
      is_in[field] = true
      local account = account_of(field)
      answer[#answer + 1] = field
      answer[#answer + 1] = joined(account[3], account[4])
      answer[#answer + 1] = joined(account[5], account[6])
    end
  end
  for at = 3, #holds, 4 do
    add(holds[at])
  end
  for at = 1, #charges, 3 do
    add(charges[at])
  end
  return answer
end

-- Frees the holds, adds the charges, appends the event, and returns the answer.
local function book(id, key, holds, charges, event)
  free_holds(holds)
  for at = 1, #charges, 3 do
    change(charges[at], charges[at + 1], charges[at + 2], '0', 1)
  end
  local seq = 0
  if event then
    seq = meta_number('seq') + 1
    set_meta('seq', seq)
    set_meta('waiting_events', meta_number('waiting_events') + 1)
    set_meta('waiting_bytes', meta_number('waiting_bytes') + #event)
    entries[#entries + 1] = {seq, event}
  end
  local number = string.format('%d', seq)
  if key == '' then
    ended[id] = ''
  else
    note_settlement(id, key .. ' ' .. number)
  end
  return settled(number, holds, charges)
end

-- The answer to a settlement whose reservation is not open: the first one again if it is the same settlement.
local function answer_again(id, key, charges)
  local stored = end_of(id)
  if not stored then
    return nil
  end
  local ended_by, seq = string.match(stored, '^(%S+) (%d+)$')
  if key == '' or ended_by ~= key then
    return {'before'}
  end
  note_settlement(id, stored)
  return settled(seq, {}, charges)
end

-- ── the fleet ───────────────────────────────────────────────────────────────────────────────────────────────────────

local function now()
  local time = call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- A member is stored as JSON of its counter, host, the incarnation that it has reasserted to, and details.
local function members()
  local names, contents = {}, {}
  local all = call('HGETALL', MEMBERS)
  for at = 1, #all, 2 do
    names[#names + 1] = all[at]
    contents[#contents + 1] = cjson.decode(all[at + 1])
  end
  return names, contents
end

-- Whether reservations are admitted: FLEET has the incarnation for which all members have reasserted.
local function is_open()
  if call('HGET', FLEET, 'opened') == incarnation then
    return true
  end
  local _, contents = members()
  for _, member in ipairs(contents) do
    if member[3] ~= incarnation then
      return false
    end
  end
  return true
end

local known_members = {}

-- Whether a worker is not a member. Only batches have workers: the keeper and the command line reserve nothing.
local function is_lost(worker)
  if SENDER == '' then
    return false
  end
  if known_members[worker] == nil then
    known_members[worker] = call('HEXISTS', MEMBERS, worker) == 1
  end
  return not known_members[worker]
end

local known_rejection

-- Why this batch may reserve nothing; false if it may.
local function rejection()
  if known_rejection == nil then
    known_rejection = false
    if SENDER ~= '' and math.abs(now() - SENT_AT) > MOST_CLOCK_DIFFERENCE then
      known_rejection = 'clock'
    elseif SENDER ~= '' and not is_open() then
      known_rejection = 'closed'
    end
  end
  return known_rejection
end

-- ── verbs ───────────────────────────────────────────────────────────────────────────────────────────────────────────

local position = 6
local function argument()
  position = position + 1
  return ARGV[position - 1]
end

local verbs = {}

-- conditions: for each hold its maximum and the field of its oldest bucket; '' for none.
function verbs.reserve()
  local id, content, draft, conditions = argument(), argument(), argument(), cjson.decode(argument())
  local holds = cjson.decode(content)
  if is_lost(holds[1]) then
    return {'lost'}
  end
  local open = content_of(id)
  if open then
    local answer, open_content = answer_and_content(open)
    if open_content ~= content or draft_of(id) ~= draft then
      return {'conflict'}
    end
    return {'reserved', answer}
  end
  local reason = rejection()
  if reason then
    return {reason}
  end
  local before, refused = {}, {}
  local fits = not (tombstones[id] or call('ZSCORE', ABANDONED, id))
  for number = 1, #conditions / 2 do
    local amount = holds[4 * number + 1]
    local maximum, oldest = conditions[2 * number - 1], conditions[2 * number]
    local balance = oldest == '' and account_of(holds[4 * number - 1]) or sum_since(oldest)
    before[#before + 1] = joined(balance[3], balance[4]) .. ' ' .. joined(balance[5], balance[6])
    if maximum ~= '' and amount ~= '0' then
      local high, low = sum(balance[3], balance[4], balance[5], balance[6])
      high, low = sum(high, low, split(amount))
      local most_high, most_low = split(maximum)
      if is_less(most_high, most_low, high, low) then
        fits = false
        if oldest ~= '' then
          local list = {string.format('%d', number - 1)}
          for _, field in ipairs(buckets_since(oldest)) do
            list[#list + 1] = field
            list[#list + 1] = value_of(account_of(field))
          end
          refused[#refused + 1] = list
        end
      end
    end
  end
  local answer = table.concat(before, ' ')
  if not fits then
    return {'refused', answer, refused}
  end
  for at = 3, #holds, 4 do
    change(holds[at], holds[at + 1], '0', holds[at + 2], 1)
  end
  reservations[id], drafts[id], is_changed[id] = answer .. '|' .. content, draft, true
  return {'reserved', answer}
end

-- A reservation that the server may have lost, or of which it may have lost a change: an earlier one of the same id may be
-- open, or released.
function verbs.reassert()
  local id, content, draft = argument(), argument(), argument()
  local holds = cjson.decode(content)
  if is_lost(holds[1]) then
    return {'lost'}
  end
  local end_before = end_of(id)
  local open_holds = take(id)
  if not open_holds and end_before and end_before ~= RELEASED then
    return {}
  end
  free_holds(open_holds or {})
  local before = {}
  for at = 3, #holds, 4 do
    local account = account_of(holds[at])
    before[#before + 1] = joined(account[3], account[4]) .. ' ' .. joined(account[5], account[6])
    change(holds[at], holds[at + 1], '0', holds[at + 2], 1)
  end
  reservations[id], drafts[id], is_changed[id] = table.concat(before, ' ') .. '|' .. content, draft, true
  return {}
end

local function settlement()
  local id, key, has_event, event, charges = argument(), argument(), argument(), argument(), cjson.decode(argument())
  return id, key, has_event == '1' and event or nil, charges
end

function verbs.settle()
  local id, key, event, charges = settlement()
  local holds = take(id)
  if holds then
    return book(id, key, holds, charges, event)
  end
  return answer_again(id, key, charges) or {'unknown'}
end

function verbs.record()
  local id, key, event, charges = settlement()
  local holds = take(id)
  if not holds then
    local again = answer_again(id, key, charges)
    if again then
      return again
    end
  end
  return book(id, key, holds or {}, charges, event)
end

function verbs.recover()
  local id = argument()
  local holds, draft = take(id)
  if not holds then
    return {'unknown'}
  end
  local charges = {}
  for at = 3, #holds, 4 do
    charges[#charges + 1] = holds[at]
    charges[#charges + 1] = holds[at + 1]
    charges[#charges + 1] = holds[at + 3]
  end
  -- Its worker may be cut off, and settle it hours later. As a tombstone it is known then.
  tombstones[id] = true
  return book(id, '', holds, charges, draft)
end

function verbs.release()
  local id = argument()
  local holds = take(id)
  if not holds then
    return {'0'}
  end
  free_holds(holds)
  ended[id] = RELEASED
  return {'1'}
end

function verbs.abandon()
  local id = argument()
  local holds = take(id)
  if not holds and end_of(id) then
    return {'0'}
  end
  free_holds(holds or {})
  ended[id] = ''
  tombstones[id] = true
  return {'1'}
end

function verbs.free()
  local id, fields = argument(), cjson.decode(argument())
  local stored = content_of(id)
  if not stored then
    return {}
  end
  local is_freed = {}
  for _, field in ipairs(fields) do
    is_freed[field] = true
  end
  local answer, content = answer_and_content(stored)
  local holds = cjson.decode(content)
  local kept, freed = {holds[1], holds[2]}, {holds[1], holds[2]}
  for at = 3, #holds, 4 do
    local list = is_freed[holds[at]] and freed or kept
    for part = at, at + 3 do
      list[#list + 1] = holds[part]
    end
  end
  if #freed > 2 then
    free_holds(freed)
    draft_of(id) -- it is written again with the rest
    reservations[id], is_changed[id] = answer .. '|' .. cjson.encode(kept), true
  end
  return {}
end

function verbs.correct()
  local id, differences = argument(), cjson.decode(argument())
  if end_of(id) then
    return {'0'}
  end
  for at = 1, #differences, 3 do
    change(differences[at], differences[at + 1], differences[at + 2], '0', 1)
  end
  ended[id] = ''
  return {'1'}
end

-- ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

local function values_of(fields)
  local values = {}
  for first = 1, #fields, CHUNK do
    local last = math.min(first + CHUNK - 1, #fields)
    for _, value in ipairs(call('HMGET', ACCOUNTS, unpack(fields, first, last))) do
      values[#values + 1] = value or ''
    end
  end
  return values
end

function verbs.snapshot()
  local fields = cjson.decode(argument())
  return {string.format('%d', meta_number('seq')), values_of(fields)}
end

-- A page of accounts by field, from `first` on and before `last`.
function verbs.list()
  local first, last, most = argument(), argument(), argument()
  local fields = call('ZRANGEBYLEX', INDEX, first, last, 'LIMIT', 0, most)
  return {fields, values_of(fields)}
end

function verbs.open()
  local found = {}
  local all = call('HGETALL', RESERVATIONS)
  for at = 1, #all, 2 do
    local _, content = answer_and_content(all[at + 1])
    found[#found + 1] = {all[at], content, call('HGET', DRAFTS, all[at])}
  end
  return found
end

-- The values of some accounts and the contents of all reservations, at one instant.
function verbs.holding()
  local fields = cjson.decode(argument())
  local contents = {}
  for _, stored in ipairs(call('HVALS', RESERVATIONS)) do
    local _, content = answer_and_content(stored)
    contents[#contents + 1] = content
  end
  return {values_of(fields), contents}
end

local function number_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end

function verbs.outbox()
  local after, most = argument(), argument()
  local found = {}
  for _, entry in ipairs(call('XRANGE', OUTBOX, '(' .. after .. '-0', '+', 'COUNT', most)) do
    found[#found + 1] = string.match(entry[1], '^%d+')
    found[#found + 1] = entry[2][2]
  end
  return found
end

function verbs.numbers()
  return {
    string.format('%d', meta_number('acknowledged')),
    string.format('%d', meta_number('waiting_events')),
    string.format('%d', meta_number('waiting_bytes')),
  }
end

-- ── upkeep: each of these is a batch of its own, and writes at once ─────────────────────────────────────────────────

local function measured(after, up_to)
  local count, size = 0, 0
  local from = after
  while true do
    local page = call('XRANGE', OUTBOX, string.format('(%d-0', from), up_to, 'COUNT', CHUNK)
    for _, entry in ipairs(page) do
      count, size, from = count + 1, size + #entry[2][2], number_of(entry)
    end
    if #page < CHUNK then
      return count, size
    end
  end
end

function verbs.acknowledge()
  local seq = tonumber(argument())
  local acknowledged = meta_number('acknowledged')
  if seq > acknowledged then
    local count, size = measured(acknowledged, string.format('%d-0', seq))
    set_meta('waiting_events', meta_number('waiting_events') - count)
    set_meta('waiting_bytes', meta_number('waiting_bytes') - size)
    set_meta('acknowledged', seq)
    set_meta('seq', math.max(meta_number('seq'), seq))
    if seq > KEPT_ENTRIES then
      call('XTRIM', OUTBOX, 'MINID', string.format('%d-0', seq - KEPT_ENTRIES + 1))
    end
  end
  return {}
end

function verbs.agree()
  local stored = tonumber(argument())
  local acknowledged = meta_number('acknowledged')
  local seq = math.max(meta_number('seq'), stored)
  if stored > acknowledged then
    while true do
      local page = call('XRANGE', OUTBOX, string.format('(%d-0', acknowledged), string.format('%d-0', stored), 'COUNT', CHUNK)
      for _, entry in ipairs(page) do
        seq = seq + 1
        call('XADD', OUTBOX, string.format('%d-0', seq), 'event', entry[2][2])
        call('XDEL', OUTBOX, entry[1])
      end
      if #page < CHUNK then
        break
      end
    end
  end
  local count, size = measured(stored, '+')
  set_meta('acknowledged', stored)
  set_meta('seq', seq)
  set_meta('waiting_events', count)
  set_meta('waiting_bytes', size)
  return {}
end

function verbs.rotate()
  local now = tonumber(argument())
  local began = meta_number('generation_began')
  if not (began <= now and now < began + GENERATION) then
    local generation = meta_number('generation') + 1
    set_meta('generation', generation)
    set_meta('generation_began', now)
    call('UNLINK', ENDED_BEFORE)
    if call('EXISTS', ENDED) == 1 then
      call('RENAME', ENDED, ENDED_BEFORE)
    end
    call('ZREMRANGEBYSCORE', ABANDONED, '-inf', string.format('(%d', generation - KEPT_TOMBSTONES))
    local senders = call('HGETALL', SENDERS)
    for at = 1, #senders, 2 do
      if tonumber(string.match(senders[at + 1], '^%d+ (%d+)')) < generation - KEPT_TOMBSTONES then
        call('HDEL', SENDERS, senders[at])
      end
    end
  end
  return {}
end

-- Examines accounts by field, and deletes those that ended before `closed` and hold nothing.
function verbs.prune()
  local after, most, closed_high, closed_low = argument(), tonumber(argument()), split(argument())
  local fields = call('ZRANGEBYLEX', INDEX, after, '+', 'LIMIT', 0, most)
  for number, value in ipairs(values_of(fields)) do
    local account = value == '' and {0, 0, 0, 0, 0, 0} or parsed(fields[number], value)
    if account[5] == 0 and account[6] == 0 and (value == '' or is_less(account[1], account[2], closed_high, closed_low)) then
      call('HDEL', ACCOUNTS, fields[number])
      call('ZREM', INDEX, fields[number])
    end
  end
  return {#fields == most and fields[most] or ''}
end

-- Deletes those of some accounts that hold nothing.
function verbs.erase_accounts()
  for _, field in ipairs(cjson.decode(argument())) do
    local value = call('HGET', ACCOUNTS, field)
    if value and string.sub(value, -2) == ' 0' then
      call('HDEL', ACCOUNTS, field)
      call('ZREM', INDEX, field)
    end
  end
  return {}
end

function verbs.erase_entries()
  for _, seq in ipairs(cjson.decode(argument())) do
    call('XDEL', OUTBOX, seq .. '-0')
  end
  return {}
end

-- Writes the outbox again: the server keeps the text of a deleted entry as long as one of its neighbours is there.
function verbs.rewrite_outbox()
  local entries_left = call('XRANGE', OUTBOX, '-', '+')
  call('DEL', OUTBOX)
  for _, entry in ipairs(entries_left) do
    call('XADD', OUTBOX, entry[1], 'event', entry[2][2])
  end
  return {}
end

-- Creates the ledger unless it exists, and returns its schema and its writer.
function verbs.create()
  local schema, writer = argument(), argument()
  call('HSETNX', META, 'schema', schema)
  call('HSETNX', META, 'writer', writer)
  call('HSETNX', FLEET, 'term_given_by', incarnation)
  return call('HMGET', META, 'schema', 'writer')
end
