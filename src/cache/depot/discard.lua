-- Takes away what is no answer. KEYS: it.
return redis.call('DEL', KEYS[1])
