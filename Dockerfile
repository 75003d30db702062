# The gateway alone, as one image: build it with `docker build -t ai-gateway .`
# docs/DEPLOY.md has the commands to run it, docker-compose.yml puts it in front of a llama-server.

FROM rust:1.95-slim-bookworm AS builder
# cmake and make build zlib-ng and jemalloc, which Pingora's compression and the allocator are; SQLite needs no more
# than the image's own C compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates cmake make tzdata \
    && rm -rf /var/lib/apt/lists/*
# glibc is linked into the program, so that the image needs no system. A target is named below, this machine's own, so
# that the flag is not that of build scripts and macros too.
ENV RUSTFLAGS="-C target-feature=+crt-static"
WORKDIR /build
# The dependencies first, from an empty program: this layer lasts until Cargo.toml or Cargo.lock changes.
# Cargo reads of every member of the workspace; neither the fuzz targets nor the bench are built.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY fuzz/Cargo.toml fuzz/
COPY bench/Cargo.toml bench/
RUN mkdir src bench/src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs bench/src/lib.rs \
    && cargo build --release --locked --target host-tuple
COPY conf/schema.json conf/
COPY src src
COPY bench bench
COPY scripts/needs.sh scripts/pgo scripts/bench.py scripts/
# `--build-arg PGO=1`: built for what it does, faster and a quarter of an hour later (docs/PERFORMANCE.md).
ARG PGO=
# The files keep the times of the checkout, which may be older than the empty program's: cargo would not look again.
RUN touch src/main.rs src/lib.rs \
    && if [ -z "$PGO" ]; then \
        cargo build --release --locked --target host-tuple \
        && mv target/*/release/ai-gateway .; \
    else \
        apt-get update \
        && apt-get install -y --no-install-recommends python3 \
        && rm -rf /var/lib/apt/lists/* \
        && scripts/pgo \
        && mv target/pgo/ai-gateway .; \
    fi
# What a program looks for in a system: who it runs as, and a place for what is passing.
RUN mkdir -p system/etc system/tmp data \
    && chmod 1777 system/tmp \
    && printf '%s\n' 'root:x:0:0:root:/root:/sbin/nologin' \
        'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >system/etc/passwd \
    && printf '%s\n' 'root:x:0:' 'nonroot:x:65532:' >system/etc/group

# The program, root certificates, time zones and the user `nonroot`: no other program, no library.
FROM scratch
LABEL org.opencontainers.image.title="ai-gateway" \
      org.opencontainers.image.description="An AI gateway in front of llama.cpp servers: keys, exact limits, a cache, routing, logs and metrics" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /build/system /
COPY --from=builder /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=builder /usr/share/zoneinfo /usr/share/zoneinfo
COPY --from=builder /build/ai-gateway /usr/local/bin/
# It writes nothing but what the file names, so the root file system may be read-only. A volume that is mounted here
# is its user's from the start: for `usage.path`.
COPY --from=builder --chown=65532:65532 /build/data /var/lib/ai-gateway
COPY --from=builder --chown=65532:65532 /build/data /home/nonroot
USER 65532:65532
WORKDIR /home/nonroot
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    GATEWAY_HOST=0.0.0.0
EXPOSE 9001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["ai-gateway", "health"]
ENTRYPOINT ["ai-gateway"]
