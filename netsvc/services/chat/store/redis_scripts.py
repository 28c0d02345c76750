"""What runs inside Redis: the scripts of the store of the chat, each atomic.

The keys, behind the prefix of the chat (docs/explanation/chat-redis.md):

- `state`: a hash with the lease's `epoch`, the last `batch` and its `answer`, and the last id (`ms`, `seq`).
- `owner`: who serves the chat. It expires.
- `rooms`, `accounts`: hashes of records in JSON, by key.
- `logs`: the set of the rooms with messages; `log:ROOM`: the stream of a room's messages; `tokens:ROOM`: their ids by
  token.
- `marks:ACCOUNT`: the read markers of an account; `marked:ACCOUNT`: the same targets, by when they were set.
"""

from __future__ import annotations

__all__ = ["ACQUIRE", "BATCH", "RELEASE", "RENEW"]

#: PREFIX OWNER MILLISECONDS EPOCH: take the lease, or take it again if no one has had it since EPOCH (0 at first).
#: Returns the epoch and the number of the last batch; -1 and who has the lease; or -2 if another process had it since.
#: With an epoch other than EPOCH, Redis has lost what it had.
ACQUIRE = """
local p, owner, epoch = ARGV[1], ARGV[2], tonumber(ARGV[4])
local holder = redis.call('GET', p .. 'owner')
if holder and holder ~= owner then return {-1, 0, holder} end
local now = tonumber(redis.call('HGET', p .. 'state', 'epoch') or '0')
if epoch > 0 and now > epoch then return {-2, 0, 'it has ended'} end
if epoch == 0 or now < epoch then
  now = math.max(now, epoch) + 1
  redis.call('HSET', p .. 'state', 'epoch', now, 'batch', 0, 'answer', '')
end
redis.call('SET', p .. 'owner', owner, 'PX', ARGV[3])
return {now, tonumber(redis.call('HGET', p .. 'state', 'batch')), ''}
"""

#: PREFIX OWNER MILLISECONDS: keep the lease. Returns whether it was still held.
RENEW = """
if redis.call('GET', ARGV[1] .. 'owner') ~= ARGV[2] then return 0 end
return redis.call('PEXPIRE', ARGV[1] .. 'owner', ARGV[3])
"""

#: PREFIX OWNER: give the lease back.
RELEASE = """
if redis.call('GET', ARGV[1] .. 'owner') == ARGV[2] then return redis.call('DEL', ARGV[1] .. 'owner') end
return 0
"""

#: PREFIX OWNER NUMBER {OPERATION COUNT ARGUMENT…}…: do all operations, if the lease is held; return a line for each. A
#: batch that has the number of the last one was done before: its answer is returned again. One with a lower number is
#: refused: it comes from a connection that was given up.
BATCH = """
local p, number = ARGV[1], ARGV[3]
local state = p .. 'state'
if redis.call('GET', p .. 'owner') ~= ARGV[2] then return redis.error_reply('LOST the lease of the chat') end
local known = redis.call('HMGET', state, 'batch', 'answer', 'ms', 'seq')
if known[1] == number then return known[2] end
if tonumber(number) < tonumber(known[1] or '0') then return redis.error_reply('LATE script of the chat') end
-- The first write: without memory, it fails before anything has changed.
redis.call('HSET', state, 'batch', number)
local ms, seq = tonumber(known[3] or '0'), tonumber(known[4] or '0')

local function next_id()
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  if now > ms then ms, seq = now, 0 else seq = seq + 1 end
  return string.format('%.0f-%.0f', ms, seq)
end

-- Drops the tokens of entries.
local function drop(room, entries)
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    if fields[6] ~= '' then redis.call('HDEL', p .. 'tokens:' .. room, fields[6]) end
  end
end

local function cut(room, log, count)
  if count <= 0 then return 0 end
  local entries = redis.call('XRANGE', log, '-', '+', 'COUNT', count)
  drop(room, entries)
  for first = 1, #entries, 500 do
    local ids = {}
    for index = first, math.min(first + 499, #entries) do ids[#ids + 1] = entries[index][1] end
    redis.call('XDEL', log, unpack(ids))
  end
  return #entries
end

local operation = {}

-- ROOM JSON ACCOUNT TOKEN TIME MOST
function operation.append(room, json, account, token, time, most)
  local log, tokens = p .. 'log:' .. room, p .. 'tokens:' .. room
  if token ~= '' then
    local id = redis.call('HGET', tokens, token)
    local entry = id and redis.call('XRANGE', log, id, id)[1]
    if entry then return 'R ' .. id .. ' ' .. entry[2][2] end
  end
  local id = next_id()
  redis.call('XADD', log, id, 'm', json, 'a', account, 't', token, 's', time)
  redis.call('SADD', p .. 'logs', room)
  if token ~= '' then redis.call('HSET', tokens, token, id) end
  local length = redis.call('XLEN', log)
  most = tonumber(most)
  if length > most + math.floor(most / 8) then cut(room, log, length - most) end
  return 'A ' .. id
end

-- ROOMS ACCOUNTS {KIND KEY JSON}…
function operation.put(rooms, accounts, ...)
  local more, seen, records = {rooms = 0, accounts = 0}, {}, {...}
  for index = 1, #records, 3 do
    local kind, key = records[index], records[index + 1]
    if not seen[kind .. ' ' .. key] and redis.call('HEXISTS', p .. kind, key) == 0 then
      seen[kind .. ' ' .. key] = true
      more[kind] = more[kind] + 1
    end
  end
  if more.rooms > 0 and redis.call('HLEN', p .. 'rooms') + more.rooms > tonumber(rooms) then return 'E room' end
  if more.accounts > 0 and redis.call('HLEN', p .. 'accounts') + more.accounts > tonumber(accounts) then
    return 'E account'
  end
  for index = 1, #records, 3 do redis.call('HSET', p .. records[index], records[index + 1], records[index + 2]) end
  return 'O'
end

-- {KIND KEY}…
function operation.remove(...)
  local records = {...}
  for index = 1, #records, 2 do
    local kind, key = records[index], records[index + 1]
    redis.call('HDEL', p .. kind, key)
    if kind == 'accounts' then
      redis.call('DEL', p .. 'marks:' .. key, p .. 'marked:' .. key)
    else
      redis.call('DEL', p .. 'log:' .. key, p .. 'tokens:' .. key)
      redis.call('SREM', p .. 'logs', key)
      for _, account in ipairs(redis.call('HKEYS', p .. 'accounts')) do
        redis.call('HDEL', p .. 'marks:' .. account, '#' .. key)
        redis.call('ZREM', p .. 'marked:' .. account, '#' .. key)
      end
    end
  end
  return 'O'
end

-- ACCOUNT TARGET NUMBER MOST
function operation.mark(account, target, value, most)
  if redis.call('HEXISTS', p .. 'accounts', account) == 0 then return 'E none' end
  local marks, marked = p .. 'marks:' .. account, p .. 'marked:' .. account
  local before = redis.call('HGET', marks, target)
  if not before or tonumber(before) < tonumber(value) then redis.call('HSET', marks, target, value) end
  redis.call('ZADD', marked, redis.call('HINCRBY', state, 'marked', 1), target)
  local excess = redis.call('ZCARD', marked) - tonumber(most)
  if excess > 0 then
    local dropped = redis.call('ZPOPMIN', marked, excess)
    for index = 1, #dropped, 2 do redis.call('HDEL', marks, dropped[index]) end
  end
  return 'O'
end

-- ROOM ACCOUNT FIRST COUNT
function operation.forget(room, account, first, count)
  local log = p .. 'log:' .. room
  local entries = redis.call('XRANGE', log, first, '+', 'COUNT', count)
  local removed = 0
  for _, entry in ipairs(entries) do
    if entry[2][4] == account then
      drop(room, {entry})
      redis.call('XDEL', log, entry[1])
      removed = removed + 1
    end
  end
  local last = #entries == tonumber(count) and entries[#entries][1] or ''
  return 'N ' .. removed .. ' ' .. last
end

-- ROOM MOST OLDEST COUNT
function operation.trim(room, most, oldest, count)
  local log = p .. 'log:' .. room
  count = tonumber(count)
  local removed = cut(room, log, math.min(count, redis.call('XLEN', log) - tonumber(most)))
  local old = 0
  if removed < count and oldest ~= '' then
    local entries = redis.call('XRANGE', log, '-', '+', 'COUNT', count)
    while old < #entries and tonumber(entries[old + 1][2][8]) < tonumber(oldest) do old = old + 1 end
    cut(room, log, old)
  end
  local more = (removed == count or old == count) and 'more' or ''
  return 'N ' .. removed + old .. ' ' .. more
end

local answers, index = {}, 4
while index <= #ARGV do
  local count = tonumber(ARGV[index + 1])
  answers[#answers + 1] = operation[ARGV[index]](unpack(ARGV, index + 2, index + 1 + count))
  index = index + 2 + count
end
local answer = table.concat(answers, '\\n')
redis.call('HSET', state, 'answer', answer, 'ms', string.format('%.0f', ms), 'seq', seq)
return answer
"""
