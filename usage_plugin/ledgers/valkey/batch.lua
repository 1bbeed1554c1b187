-- Does all verbs, then writes what they have decided. Answers the incarnation, if it was asked for, and an answer for each
-- verb.

local answers = {incarnation or ''}
while position <= #ARGV do
  answers[#answers + 1] = verbs[argument()]()
end

-- All that was decided is written from here on.

local function write(command, key, arguments)
  for first = 1, #arguments, CHUNK do
    call(command, key, unpack(arguments, first, math.min(first + CHUNK - 1, #arguments)))
  end
end

-- First, so that a server without memory rejects it before anything else is written.
if SENDER ~= '' then
  local list = #settlements > 0 and cjson.encode(settlements)
    or (last_of_sender and string.match(last_of_sender, '^%d+ %d+ (.+)$') or '')
  call('HSET', SENDERS, SENDER, string.format('%s %d %s', BATCH_NUMBER, meta_number('generation'), list))
end

local values, fields = {}, {}
for field in pairs(changed) do
  values[#values + 1] = field
  values[#values + 1] = value_of(accounts[field])
end
write('HSET', ACCOUNTS, values)
for field in pairs(created) do
  fields[#fields + 1] = '0'
  fields[#fields + 1] = field
end
write('ZADD', INDEX, fields)

local function write_texts(key, texts, ids)
  local set, deleted = {}, {}
  for id in pairs(ids) do
    if texts[id] then
      set[#set + 1] = id
      set[#set + 1] = texts[id]
    else
      deleted[#deleted + 1] = id
    end
  end
  write('HSET', key, set)
  write('HDEL', key, deleted)
end
write_texts(RESERVATIONS, reservations, is_changed)
write_texts(DRAFTS, drafts, is_changed)
write_texts(ENDED, ended, ended)

local abandoned = {}
for id in pairs(tombstones) do
  abandoned[#abandoned + 1] = string.format('%d', meta_number('generation'))
  abandoned[#abandoned + 1] = id
end
write('ZADD', ABANDONED, abandoned)

for _, entry in ipairs(entries) do
  call('XADD', OUTBOX, string.format('%d-0', entry[1]), 'event', entry[2])
end

local numbers = {}
for name, number in pairs(meta_changes) do
  numbers[#numbers + 1] = name
  numbers[#numbers + 1] = string.format('%d', number)
end
write('HSET', META, numbers)
return answers
