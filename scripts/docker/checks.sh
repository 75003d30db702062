# shellcheck shell=bash
# Expectations, counted. Sourced by scripts/test-docker.

PASSED=0 FAILED=0

check() { # check WHAT COMMAND...
    local what=$1
    shift
    if "$@"; then
        PASSED=$((PASSED + 1))
        echo "    ok      $what"
    else
        FAILED=$((FAILED + 1))
        echo "    FAILED  $what"
    fi
}

is() { # is EXPECTED SEEN
    [[ $1 == "$2" ]] || { echo "            expected '$1', saw '$2'" && false; }
}

at_most() { # at_most LIMIT SEEN
    (($2 <= $1)) || { echo "            expected at most $1, saw $2" && false; }
}

not() { ! "$@"; }

# eventually COMMAND...: again and again, for a minute and a half at most.
eventually() {
    local given_up=$((SECONDS + 90))
    until "$@"; do
        ((SECONDS < given_up)) || return 1
        sleep 0.1
    done
}

status_of() { curl -s -o /dev/null -m 5 -w '%{http_code}' "$@" || true; }
answers() { [[ $(status_of "$2") == "$1" ]]; }    # answers STATUS URL
refuses() { ! curl -s -o /dev/null -m 5 "$1"; }   # refuses URL
goes_on() { kill -0 "$1" 2>/dev/null; }           # goes_on PID
