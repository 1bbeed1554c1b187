-- The beginning of every script: find out the server's incarnation, and let no former keeper write.
--
-- The last of KEYS is always that of the fleet. ARGV begins with two texts:
--   the incarnation that the client has accepted: '' accepts the present one, and '-' does not ask for it
--   the term of a keeper that writes; '' for all others

local call = redis.call
local FLEET, ACCEPTED, TERM = KEYS[#KEYS], ARGV[1], ARGV[2]

-- The incarnation is the server's replication id. Each restart and each promotion of a replica makes a new one, and a
-- primary that becomes a replica loses its own. Read here, it is never out of date, as one that a client has read can be.
local incarnation
if ACCEPTED ~= '-' or TERM ~= '' then
  local replication = call('INFO', 'replication')
  if not string.find(replication, 'role:master', 1, true) then
    return redis.error_reply('READONLY this server is a replica')
  end
  incarnation = string.match(replication, 'master_replid:(%x+)')
  if not incarnation then
    return redis.error_reply('ERR this server has no replication id')
  end
  if ACCEPTED ~= '' and ACCEPTED ~= '-' and ACCEPTED ~= incarnation then
    return redis.error_reply('REPLACED ' .. incarnation)
  end
end

-- Whether the present incarnation has given the term that is stored. Another one may have forgotten the last keepers.
local function has_given_term()
  local given_by = call('HGET', FLEET, 'term_given_by')
  return not given_by or given_by == incarnation
end

-- The terms of an incarnation begin at a number of its own, which is higher than that of any term of earlier ones.
local function present_term()
  local term = tonumber(call('HGET', FLEET, 'term') or '0')
  if not has_given_term() then
    term = term + 1000 + tonumber(string.sub(incarnation, 1, 8), 16)
  end
  return string.format('%d', term)
end

if TERM ~= '' and TERM ~= present_term() then
  return redis.error_reply('KEEPER another worker is the keeper now')
end

