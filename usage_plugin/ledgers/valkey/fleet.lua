-- The verbs of the register: members, and their keeper. Each is a batch of its own, and writes at once.

local function member(name)
  local stored = call('HGET', MEMBERS, name)
  return stored and cjson.decode(stored)
end

-- A script that has written may go on without memory, and HDEL needs none. So a full server declares no worker dead.
local function set_member(name, content)
  call('HDEL', MEMBERS, name)
  call('HSET', MEMBERS, name, cjson.encode(content))
end

local function keeper()
  return has_given_term() and call('HGET', FLEET, 'keeper')
end

local function open_if_complete()
  if is_open() then
    call('HSET', FLEET, 'opened', incarnation)
  end
end

local function remove(name)
  call('HDEL', MEMBERS, name)
  if call('HGET', FLEET, 'keeper') == name then
    call('HDEL', FLEET, 'keeper')
  end
  open_if_complete()
end

-- Answers: the time, the incarnation, whether the ledger is open, the keeper, the term, and for each member its name,
-- counter, host, whether it has reasserted, and details.
local function fleet()
  local answer = {
    string.format('%d', now()),
    incarnation,
    is_open() and '1' or '0',
    keeper(),
    present_term(),
  }
  local names, contents = members()
  for number, name in ipairs(names) do
    local beats, host, reasserted_to, details = unpack(contents[number])
    answer[#answer + 1] = {name, beats, host, reasserted_to == incarnation and '1' or '0', details}
  end
  return answer
end

function verbs.join()
  local name, host, details, has_reasserted = argument(), argument(), argument(), argument() == '1'
  local content = member(name) or {'0', host, has_reasserted and incarnation or ''}
  content[4] = details
  set_member(name, content)
  open_if_complete()
  return fleet()
end

function verbs.beat()
  local name, details = argument(), argument()
  local content = member(name)
  if not content then
    return {'lost'}
  end
  content[1], content[4] = string.format('%d', tonumber(content[1]) + 1), details
  set_member(name, content)
  return fleet()
end

verbs.view = fleet

function verbs.leave()
  remove(argument())
  return {}
end

function verbs.bury()
  local name, beats = argument(), argument()
  local content = member(name)
  if content and content[1] ~= beats then
    return {'0'}
  end
  remove(name)
  return {'1'}
end

function verbs.keep()
  local name, term = argument(), argument()
  if keeper() or term ~= present_term() or not member(name) then
    return {'0'}
  end
  local next_term = string.format('%d', tonumber(term) + 1)
  call('HSET', FLEET, 'keeper', name, 'term', next_term, 'term_given_by', incarnation)
  return {'1'}
end

function verbs.stop_keeping()
  if call('HGET', FLEET, 'keeper') == argument() then
    call('HDEL', FLEET, 'keeper')
  end
  return {}
end

function verbs.reasserted()
  local name = argument()
  local content = member(name)
  if not content then
    return {'lost'}
  end
  content[3] = incarnation
  set_member(name, content)
  open_if_complete()
  return {}
end
