"""What runs inside Redis, 6 and newer: each script is one step that nothing comes between.

KEYS: the record, and its lease where that is meant too. Every answer begins with the server's time, in seconds and
microseconds, and the first key. Sizes are looked at before a value leaves the server. What is of another type is
neither overwritten nor deleted: the first look at it raises WRONGTYPE, and everything is looked at before anything is
written.
"""

from sidecar.tokens.store import KEEP, MAX_GENERATION, MAX_INSTANCES, MAX_NAME, MAX_RECORD

_ANSWER = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function answer(...) return {time[1], time[2], KEYS[1], ...} end
"""

# `generation`: '0' if there is none that counts; handled as text, for a Lua number is too coarse.
_GENERATION = f"""{_ANSWER}
local function generation()
    local most = '{MAX_GENERATION}'
    if redis.call('HSTRLEN', KEYS[1], 'generation') > #most then return '0' end
    local found = redis.call('HGET', KEYS[1], 'generation')
    if not found or not string.match(found, '^[1-9]%d*$') then return '0' end
    if #found == #most and found > most then return '0' end
    return found
end
"""

_RECORD = f"""{_GENERATION}
local function record()
    local found = generation()
    if found == '0' or redis.call('HSTRLEN', KEYS[1], 'sealed') > {MAX_RECORD} then return found, '' end
    return found, redis.call('HGET', KEYS[1], 'sealed') or ''
end
"""

READ = f"{_RECORD} return answer(record())"
"""Answer: generation, 0 for none, and record."""

# A lease without an end is none: it would lock everybody out for ever.
TAKE = f"""{_RECORD}
local found, sealed = record()
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] and redis.call('PTTL', KEYS[2]) > 0 then return answer(found, sealed, 0) end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return answer(found, sealed, 1)
"""
"""ARGV: owner, milliseconds. Answer: as READ, then 1 if the lease is the owner's."""

WRITE = f"""{_GENERATION}
if generation() ~= ARGV[1] then return answer(0) end
local held = KEYS[2] and redis.call('GET', KEYS[2]) == ARGV[4]
redis.call('HSET', KEYS[1], 'generation', ARGV[2], 'sealed', ARGV[3])
redis.call('PEXPIRE', KEYS[1], {KEEP * 1000})
if held then redis.call('DEL', KEYS[2]) end
return answer(1)
"""
"""ARGV: the generation to write over, that of the record, the record, owner of the lease. Answer: 1 if written."""

RELEASE = f"""{_ANSWER}
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return answer(0) end
return answer(redis.call('DEL', KEYS[1]))
"""
"""KEYS: the lease. ARGV: owner."""

# One hash of `{time in ms}:{record}` by instance, so that a cluster needs no scan. A crowd is not walked through.
_INSTANCES = f"""{_ANSWER}
local names = redis.call('HLEN', KEYS[1]) > {MAX_INSTANCES} and {{}} or redis.call('HKEYS', KEYS[1])
local function word(name)
    if #name > {MAX_NAME} or redis.call('HSTRLEN', KEYS[1], name) > {MAX_RECORD + 16} then return nil end
    local ends, sealed = string.match(redis.call('HGET', KEYS[1], name), '^(%d+):(.*)$')
    if ends and #sealed <= {MAX_RECORD} and tonumber(ends) > now then return sealed end
end
"""

ANNOUNCE = f"""{_INSTANCES}
for _, name in ipairs(names) do
    if not word(name) then redis.call('HDEL', KEYS[1], name) end
end
if redis.call('HLEN', KEYS[1]) >= {MAX_INSTANCES} and redis.call('HSTRLEN', KEYS[1], ARGV[1]) == 0 then
    return answer(0)
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + ARGV[3]) .. ':' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], {KEEP * 1000})
return answer(1)
"""
"""ARGV: instance, record, milliseconds. Answer: 1 unless it is one too many."""

ANNOUNCED = f"""{_INSTANCES}
local all = answer()
for _, name in ipairs(names) do
    local sealed = word(name)
    if sealed then
        all[#all + 1] = name
        all[#all + 1] = sealed
    end
end
return all
"""
"""Answer: name and record of each; nothing of a crowd."""
