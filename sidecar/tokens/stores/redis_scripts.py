"""What runs inside Redis, 6 and newer: each script is one step that nothing comes between.

Every answer begins with the server's time, in seconds and microseconds, and the key it is about. Sizes are looked at
before a value leaves the server. What is of another type is neither overwritten nor deleted: the first look at it
raises WRONGTYPE.
"""

from dataclasses import dataclass
from hashlib import sha1
from typing import Self

_ANSWER = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function answer(...) return {time[1], time[2], KEYS[1], ...} end
"""

# The generation under KEYS[1], false if there is none that counts; compared as text, for a Lua number is too coarse.
_GENERATION = """
local function generation(most)
    if redis.call('HSTRLEN', KEYS[1], 'generation') > #most then return false end
    local found = redis.call('HGET', KEYS[1], 'generation')
    if not found or not string.match(found, '^[1-9]%d*$') then return false end
    if #found == #most and found > most then return false end
    return found
end
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name by which Redis knows it once it has seen it."""

    text: str
    sha: str

    @classmethod
    def of(cls, *parts: str) -> Self:
        """Return the script that *parts* make, after what they all need."""
        text = "".join((_ANSWER, *parts))
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


READ = Script.of(
    _GENERATION,
    """
local found = generation(ARGV[1])
if not found then return answer() end
if redis.call('HSTRLEN', KEYS[1], 'sealed') > tonumber(ARGV[2]) then return answer(found, '') end
return answer(found, redis.call('HGET', KEYS[1], 'sealed') or '')
""",
)
"""ARGV: highest generation, longest record. Answer: generation and record, nothing if there is none."""

_STORE = """
redis.call('HSET', KEYS[1], 'generation', ARGV[2], 'sealed', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return answer(1)
"""

WRITE = Script.of(
    _GENERATION,
    """
local found = generation(ARGV[1])
if found and tonumber(found) >= tonumber(ARGV[2]) then return answer(0) end
""",
    _STORE,
)
"""ARGV: highest generation, generation, record, how long to keep it (ms). Answer: 1 if written."""

REPLACE = Script.of(_GENERATION, "if generation(ARGV[1]) ~= ARGV[2] then return answer(0) end", _STORE)
"""As WRITE, over the record of the same generation only."""

DELETE = Script.of("""
redis.call('HLEN', KEYS[1])
return answer(redis.call('DEL', KEYS[1]))
""")

# A lease without an end is none: it would lock everybody out for ever.
ACQUIRE = Script.of("""
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] and redis.call('PTTL', KEYS[1]) > 0 then return answer(0) end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return answer(1)
""")
"""ARGV: owner, milliseconds. Answer: 1 if the lease is the owner's."""

RELEASE = Script.of("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return answer(0) end
return answer(redis.call('DEL', KEYS[1]))
""")
"""ARGV: owner."""

# One hash of `{time in ms}:{record}` by instance, so that a cluster needs no scan. A crowd is not walked through.
_INSTANCES = """
local function crowded() return redis.call('HLEN', KEYS[1]) > tonumber(ARGV[1]) end
local function word(name)
    if #name > 256 or redis.call('HSTRLEN', KEYS[1], name) > tonumber(ARGV[2]) + 16 then return nil end
    local ends, sealed = string.match(redis.call('HGET', KEYS[1], name), '^(%d+):(.*)$')
    if ends and #sealed <= tonumber(ARGV[2]) and tonumber(ends) > now then return sealed end
end
"""

ANNOUNCE = Script.of(
    _INSTANCES,
    """
if not crowded() then
    for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
        if not word(name) then redis.call('HDEL', KEYS[1], name) end
    end
end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[1]) and redis.call('HSTRLEN', KEYS[1], ARGV[3]) == 0 then
    return answer(0)
end
redis.call('HSET', KEYS[1], ARGV[3], string.format('%.0f', now + ARGV[5]) .. ':' .. ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return answer(1)
""",
)
"""ARGV: most instances, longest record, instance, record, milliseconds, how long to keep them all (ms)."""

ANNOUNCED = Script.of(
    _INSTANCES,
    """
local all = answer()
if crowded() then return all end
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    local sealed = word(name)
    if sealed then
        all[#all + 1] = name
        all[#all + 1] = sealed
    end
end
return all
""",
)
"""ARGV: most instances, longest record. Answer: name and record of each; nothing of a crowd."""
