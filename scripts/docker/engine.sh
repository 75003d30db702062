# shellcheck shell=bash
# A Docker engine of our own for a test: its own folder and socket, no firewall rules, nothing left when it ends.
# Sourced by scripts/test-docker. Sets DOCKER_HOST; `engine_stop` undoes everything.

ENGINE='' # folder of the engine's data, its socket and its log

# Ends it where this machine allows no engine, which says nothing of the gateway: with a code of its own (EX_TEMPFAIL).
no_engine() {
    echo "error: $1" >&2
    exit 75
}

engine_start() {
    local free_kib
    free_kib=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n1)
    # In memory where there is plenty: several times as fast, and nothing wears out.
    if ((${free_kib:-0} > 8 * 1024 * 1024)); then ENGINE=$(mktemp -d /dev/shm/test-docker.XXXX); else ENGINE=$(mktemp -d /var/tmp/test-docker.XXXX); fi
    LINKS_BEFORE=$(links)
    # Without iptables it leaves the machine's firewall alone. Published ports, networks and names between containers
    # still work; the way out does not, hence --network host for builds.
    dockerd --data-root "$ENGINE/data" --exec-root "$ENGINE/exec" --pidfile "$ENGINE/pid" \
        --host "unix://$ENGINE/docker.sock" \
        --iptables=false --ip6tables=false --ip-masq=false >"$ENGINE/log" 2>&1 &
    ENGINE_PID=$!
    export DOCKER_HOST=unix://$ENGINE/docker.sock DOCKER_CONFIG=$ENGINE/config DOCKER_BUILDKIT=0
    for _ in $(seq 100); do
        docker version >/dev/null 2>&1 && return
        kill -0 "$ENGINE_PID" 2>/dev/null || break
        sleep 0.2
    done
    tail -n5 "$ENGINE/log" >&2
    no_engine "dockerd did not start: its last words are above (it needs a real root, cgroups and overlayfs)"
}

engine_stop() {
    [[ -n $ENGINE ]] || return 0
    if kill "$ENGINE_PID" 2>/dev/null; then wait "$ENGINE_PID" 2>/dev/null || true; fi
    # What it may leave mounted: containers' file systems and their network namespaces, the innermost first.
    awk -v under="$ENGINE/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount -l
    rm -rf "$ENGINE"
    # Its bridges, where it could not take them away itself; never those of another engine.
    links | grep -vxF "$LINKS_BEFORE" | xargs -r -n1 ip link del 2>/dev/null || true
    ENGINE=''
}

# The bridges of Docker's networks.
links() { ip -o link | sed -nE 's/^[0-9]+: (docker0|br-[0-9a-f]{12}): .*/\1/p'; }
