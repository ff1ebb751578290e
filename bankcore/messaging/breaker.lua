-- One step of one circuit breaker, atomic for all workers. breaker_rules.py is the same in Python; a test compares them.
-- KEYS: the breaker's hash, the sorted set of all breakers' names.
-- ARGV: step, name, now in ms (empty: this server's clock), then per step:
--   admit  probe_ms token
--   settle generation token outcome(ok|bad|none) error window_ms calls_min ratio open_ms open_ms_max trials jitter
--   force  mode(open|closed|'')
local hash, names = KEYS[1], KEYS[2]
local step, name, now = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not now then
  local clock = redis.call('TIME')
  now = clock[1] * 1000 + math.floor(clock[2] / 1000)
end
local SLOTS, KEPT_MS = 10, 7 * 24 * 3600 * 1000

local function get(field) return redis.call('HGET', hash, field) end
local function number(field) return tonumber(get(field) or 0) end
local function set(...) redis.call('HSET', hash, ...) end
local function state() return get('state') or 'closed' end

local moved = 0
local function become(new)
  moved = 1
  set('state', new, 'since', now, 'passed', 0, 'probe_until', 0, 'probe_token', '')
  redis.call('HINCRBY', hash, 'generation', 1)
  if new == 'closed' then set('openings', 0) end
  for slot = 0, SLOTS - 1 do redis.call('HDEL', hash, 'i' .. slot, 'f' .. slot, 'n' .. slot) end
end

local function trip(open_ms, open_ms_max, jitter)
  local openings = number('openings') + 1
  local pause = math.min(open_ms * 2 ^ math.min(openings - 1, 20), open_ms_max)
  become('open')
  set('openings', openings, 'open_until', string.format('%.0f', math.floor(now + pause * jitter)))
end

local function count(bad, window_ms)
  local index = math.floor(now / (window_ms / SLOTS))
  local slot = index % SLOTS
  if number('i' .. slot) ~= index then set('i' .. slot, index, 'f' .. slot, 0, 'n' .. slot, 0) end
  redis.call('HINCRBY', hash, 'n' .. slot, 1)
  if bad then redis.call('HINCRBY', hash, 'f' .. slot, 1) end
  local calls, failures = 0, 0
  for s = 0, SLOTS - 1 do
    if number('i' .. s) > index - SLOTS then
      calls, failures = calls + number('n' .. s), failures + number('f' .. s)
    end
  end
  return calls, failures
end

-- For `settle` the second number of the reply tells whether this step changed the state.
local admitted, wait = 1, 0
if step == 'force' then
  become('closed')
  set('forced', ARGV[4])
elseif step == 'admit' then
  local forced = get('forced') or ''
  if forced == 'open' then
    admitted, wait = 0, 1000
  elseif forced ~= 'closed' then
    if state() == 'open' then
      if now < number('open_until') then
        admitted, wait = 0, number('open_until') - now
      else
        become('half_open')
      end
    end
    if admitted == 1 and state() == 'half_open' then
      -- One trial call at a time; its lease ends by itself if the process that holds it dies.
      if now < number('probe_until') then
        admitted, wait = 0, math.min(number('probe_until') - now, 1000)
      else
        set('probe_until', now + tonumber(ARGV[4]), 'probe_token', ARGV[5])
      end
    end
  end
elseif step == 'settle' and number('generation') == tonumber(ARGV[4]) then
  local token, outcome = ARGV[5], ARGV[6]
  local window_ms, calls_min, ratio = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
  local open_ms, open_ms_max, trials, jitter =
    tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
  if outcome == 'bad' then set('error', ARGV[7], 'error_at', now) end
  if (get('forced') or '') ~= '' then
    -- Staff has decided; what is learned meanwhile is only shown.
  elseif state() == 'half_open' and get('probe_token') == token then
    set('probe_until', 0, 'probe_token', '')
    if outcome == 'bad' then
      trip(open_ms, open_ms_max, jitter)
    elseif outcome == 'ok' and redis.call('HINCRBY', hash, 'passed', 1) >= trials then
      become('closed')
    end
  elseif state() == 'closed' and outcome ~= 'none' then
    local calls, failures = count(outcome == 'bad', window_ms)
    if calls >= calls_min and failures >= calls * ratio then trip(open_ms, open_ms_max, jitter) end
  end
end

if step == 'settle' then wait = moved end
if not get('state') then set('state', 'closed', 'since', now) end
redis.call('ZADD', names, now, name)
if (get('forced') or '') == '' then redis.call('PEXPIRE', hash, KEPT_MS) else redis.call('PERSIST', hash) end
return {admitted, math.ceil(wait), number('generation'), state(), get('forced') or ''}
