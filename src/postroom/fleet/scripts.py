"""The scripts that Valkey runs. The rules are those of ``memory.Store``, over the server's own clock."""

from typing import Final

_NUMBER: Final = """
-- What something else may have written must cost only itself: a script that fails costs all tenants their slots.
local function number(text, default)
  local found = tonumber(text or nil)
  if found and found == found and math.abs(found) < 1e15 then return found end
  return default
end
"""

EXCHANGE: Final = (
    _NUMBER
    + """
local epoch_key, members_key, decisions_key, hints_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local me, sequence, known_there, lease, tick, leaving = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]),
  tonumber(ARGV[5]), ARGV[6] == '1'
local time = redis.call('TIME')
local exact = time[1] * 1000 + time[2] / 1000
local now = math.floor(exact)
local period = math.floor(now / lease)

-- Replicas may have different leases, as while a new version is rolled out: no key ends before what is in it.
local function outlast(key, milliseconds)
  if redis.call('PTTL', key) < milliseconds then redis.call('PEXPIRE', key, milliseconds) end
end

-- The memory may be lost, wholly (a flush) or in its last writes (a restart, a fail-over).
local run = ''
local told = redis.pcall('INFO', 'server')
if type(told) == 'string' then run = string.match(told, 'run_id:(%w+)') or '' end
local stored = redis.call('HMGET', epoch_key, 'id', 'born', 'quiet')
local epoch, born, quiet = stored[1], number(stored[2], 0), number(stored[3], 0)
if not epoch or string.sub(epoch, 1, #run + 1) ~= run .. ':' then
  quiet = 0
  if epoch or known_there ~= '' then quiet = now + lease end
  epoch, born = run .. ':' .. string.format('%d', now), now
  redis.call('HSET', epoch_key, 'id', epoch, 'born', born, 'quiet', quiet)
elseif known_there ~= '' and known_there ~= epoch and now - born < lease and quiet < born + lease then
  quiet = born + lease
  redis.call('HSET', epoch_key, 'quiet', quiet)
end
outlast(epoch_key, 10 * lease)

redis.call('ZREMRANGEBYSCORE', members_key, '-inf', now)
if leaving then redis.call('ZREM', members_key, me) else redis.call('ZADD', members_key, now + lease, me) end
outlast(members_key, lease)
local out = {epoch, number(redis.call('HGET', decisions_key, '#'), 0), redis.call('ZCARD', members_key), 0}

local hints = redis.call('HGETALL', hints_key)
for i = 1, #hints, 2 do
  local till, cause = string.match(hints[i + 1], '^(%d+) (.*)$')
  till = number(till, 0)
  if till <= now then
    redis.call('HDEL', hints_key, hints[i])
  else
    out[4] = out[4] + 1
    out[#out + 1] = hints[i]; out[#out + 1] = till - now; out[#out + 1] = cause
  end
end

-- What a replica may be granted, what it gets as handlers of others end, and whether a slot of a remainder is in it.
local function filled(demands, held, before, cap)
  local sorted, mine = {}, demands[1]
  for i = 1, #demands do sorted[i] = demands[i] end
  table.sort(sorted)
  local left, rest = cap, #sorted
  for i = 1, #sorted do
    local level = math.floor(left / rest)
    if sorted[i] > level then
      if mine <= level then return mine, mine, false end
      local remainder, front, behind = left - level * rest, 0, 0
      for j = 2, #demands do
        if demands[j] > level then
          local over = (held[j] or level) - level
          if before[j] then front = front + math.max(1, over) else behind = behind + math.max(0, over) end
        end
      end
      if front + behind < remainder then return level + 1, level + 1, true end
      if (held[1] or level) <= level and front < remainder then return level, level + 1, false end
      return level, level, false
    end
    left = left - sorted[i]; rest = rest - 1
  end
  return mine, mine, false
end

local grants, count, key = {}, 0, 5
for cap, hold, need, want, rate, tokens in string.gmatch(ARGV[7], '(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)') do
  cap, hold, need = tonumber(cap), tonumber(hold), tonumber(need)
  want, rate, tokens = tonumber(want), tonumber(rate), tonumber(tokens)
  local slots_key, rate_key = KEYS[key], KEYS[key + 1]
  key = key + (rate > 0 and 2 or 1)
  if want < need then want = need end
  local names, needs, spares, held, turns, sinces = {me}, {need}, {want - need}, {hold}, {false}, {exact}
  local needed, used, mine, last, contended, hungry, had = need, 0, 0, -1, 0, 1, 0
  local all = redis.pcall('HGETALL', slots_key)
  if all.err then redis.call('DEL', slots_key); all = {} end
  for j = 1, #all, 2 do
    local g, n, w, t, e, s, since = 0, 0, 0, 0, 0, 0, 0
    if #all[j + 1] == 40 then g, n, w, t, e, s, since = struct.unpack('<I4I4I4I4ddd', all[j + 1]) end
    local has = t == 1 and math.floor(since / lease) == period
    if not (e > now) then
      redis.call('HDEL', slots_key, all[j])
    elseif all[j] == me then
      mine, last, had, turns[1], sinces[1] = g, s, t, has, since
    else
      local k = #names + 1
      names[k], needs[k], spares[k], held[k], turns[k], sinces[k] = all[j], n, w - n, g, has, since
      needed, used = needed + n, used + g
      if n > g then contended = 1 end
      if n > 0 then hungry = hungry + 1 end
    end
  end
  if sequence <= last then
    count = count + 1
    grants[count] = string.format('%d %d 0 0', mine, mine)
  else
    local room = cap - used
    local keep = math.max(0, math.min(hold, math.max(mine, room)))
    local before, share, hope, turn = {}, need, need, false
    for k = 2, #names do
      if turns[k] ~= turns[1] then before[k] = turns[k]
      elseif sinces[k] ~= sinces[1] then before[k] = sinces[k] < sinces[1]
      else before[k] = names[k] < me end
    end
    if needed > cap then
      share, hope, turn = filled(needs, held, before, cap)
    else
      share = need + filled(spares, {}, before, math.floor((cap - needed) / 2)); hope = share
    end
    local granted = keep
    if share > keep and now >= quiet then granted = math.min(share, math.max(keep, room)) end
    if granted > 0 or need > 0 then
      if turn and granted >= share and not turns[1] then had, sinces[1] = 1, exact end
      redis.call('HSET', slots_key, me,
        struct.pack('<I4I4I4I4ddd', granted, need, want, had, now + lease, sequence, sinces[1]))
      outlast(slots_key, lease)
    elseif last >= 0 then
      redis.call('HDEL', slots_key, me)
    end
    local taken = 0
    if rate > 0 and tokens > 0 then
      local interval = 1000 / rate
      local tat = redis.pcall('GET', rate_key)
      tat = math.max(number(type(tat) == 'string' and tat, 0), now)
      local there = math.floor((now + math.max(interval, 2 * tick) - tat) / interval + 1e-6)
      taken = math.max(0, math.min(tokens, there, math.ceil(there / hungry)))
      if taken > 0 then
        tat = tat + taken * interval
        redis.call('SET', rate_key, string.format('%.3f', tat), 'PX', math.ceil(tat - now) + 1)
      end
    end
    count = count + 1
    grants[count] = string.format('%d %d %d %d', granted, hope, contended, taken)
  end
end
out[#out + 1] = table.concat(grants, ' ')
return out
"""
)
"""Keys: epoch, members, decisions, hints, then the slots of each tenant, and its rate if it has one. Arguments:
replica, sequence, epoch, lease and tick in milliseconds, whether it leaves; then, in one text with spaces, cap, hold,
need, want, rate and tokens of each tenant. The grants come back in one text, too: many small answers take a client
longer to read."""

MEMBERS: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%d', now), '+inf')
"""
"""Keys: members. Returns those that are alive."""

USAGE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local all, slots, replicas = redis.call('HVALS', KEYS[1]), 0, 0
for i = 1, #all do
  if #all[i] == 40 then
    local granted, _, _, _, till = struct.unpack('<I4I4I4I4dd', all[i])
    if till > now and granted > 0 then slots = slots + granted; replicas = replicas + 1 end
  end
end
return {slots, replicas}
"""
"""Keys: the slots of one tenant."""

_UNDONE: Final = """
local function forget(key, now, remembered, most)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now - remembered))
  redis.call('ZREMRANGEBYRANK', key, 0, -most - 1)
  redis.call('PEXPIRE', key, remembered)
end
"""

DECIDE: Final = (
    _NUMBER
    + _UNDONE
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local version = string.format('%.0f', math.max(number(redis.call('HGET', KEYS[1], '#'), 0) + 1, now))
for i = 3, #ARGV, 3 do
  local field = ARGV[i]
  if ARGV[i + 1] == 'set' then
    redis.call('HSET', KEYS[1], field, ARGV[i + 2], '@' .. field, version)
    redis.call('ZREM', KEYS[2], field)
  else
    redis.call('HDEL', KEYS[1], field, '@' .. field)
    if ARGV[i + 1] == 'undo' then redis.call('ZADD', KEYS[2], version, field) end
  end
end
redis.call('HSET', KEYS[1], '#', version)
forget(KEYS[2], now, tonumber(ARGV[1]), tonumber(ARGV[2]))
return version
"""
)
"""Keys: decisions, and those that were taken back. Arguments: for how many milliseconds, and of how many, it is
remembered that they were; then field, what happens to it (set, undo, forget), and value of each."""

DECISIONS: Final = """
local run = ''
local told = redis.pcall('INFO', 'server')
if type(told) == 'string' then run = string.match(told, 'run_id:(%w+)') or '' end
local epoch = redis.call('HGET', KEYS[3], 'id') or ''
if string.sub(epoch, 1, #run + 1) ~= run .. ':' then epoch = '' end
return {epoch, redis.call('HGETALL', KEYS[1]), redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')}
"""
"""Keys: decisions, those that were taken back, epoch."""

RESTORE: Final = (
    _NUMBER
    + _UNDONE
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known, version = tonumber(ARGV[3]), number(redis.call('HGET', KEYS[1], '#'), 0)
local changed = version < known
for i = 4, #ARGV, 4 do
  local field, stamp = ARGV[i], tonumber(ARGV[i + 3])
  local stored = number(redis.call('HGET', KEYS[1], '@' .. field), -1)
  local undone = tonumber(redis.call('ZSCORE', KEYS[2], field) or -1)
  if ARGV[i + 1] == 'set' then
    if stamp > stored and stamp > undone then
      redis.call('HSET', KEYS[1], field, ARGV[i + 2], '@' .. field, ARGV[i + 3])
      redis.call('ZREM', KEYS[2], field)
      changed = true
    end
  elseif stamp >= stored and stamp > undone then
    if redis.call('HDEL', KEYS[1], field, '@' .. field) > 0 then changed = true end
    redis.call('ZADD', KEYS[2], ARGV[i + 3], field)
  end
end
if changed then
  version = math.max(version + 1, known + 1, now)
  redis.call('HSET', KEYS[1], '#', string.format('%.0f', version))
end
forget(KEYS[2], now, tonumber(ARGV[1]), tonumber(ARGV[2]))
return string.format('%.0f', version)
"""
)
"""Keys and first arguments: as of ``DECIDE``. Then the version that was known; then field, what happened to it (set,
undo), value and version of each decision."""

REPORT: Final = """
if ARGV[2] == '' then
  redis.call('DEL', KEYS[2])
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
redis.call('SET', KEYS[2], '', 'PX', math.ceil(ARGV[3] / 2))
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d', now + ARGV[3]) .. ' ' .. ARGV[2])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
"""Keys: hints, the host's probe. Arguments: host, cause (empty: it is back), milliseconds."""

CLAIM: Final = """
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
local time = redis.call('TIME')
local till = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
local ends, cause = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(%d+) (.*)$')
redis.call('HSET', KEYS[1], ARGV[1],
  string.format('%d', math.max(till, tonumber(ends or 0))) .. ' ' .. (cause or 'a replica tries it'))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
"""Keys: hints, the host's probe. Arguments: host, replica, milliseconds."""
