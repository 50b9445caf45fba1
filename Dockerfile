# trikvd in a container: built from this tree, run as a user without rights.
#
#   docker build -t trikvd .
#   docker run --rm -v /run/trikv:/run/trikv trikvd
#
# Clients reach the socket through the volume, which uid 10000 must be allowed to write; who
# connects needs its group.
FROM debian:12-slim AS build
WORKDIR /src
COPY setup.sh ./
RUN ./setup.sh build && rm -rf /var/lib/apt/lists/*
COPY . .
RUN make clean && make -j"$(nproc)" PREFIX=/usr && \
    make install PREFIX=/usr DESTDIR=/out UNITDIR=/usr/lib/systemd/system

FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends \
        libuv1 libprotobuf-c1 libjemalloc2 libyaml-0-2 libxxhash0 libzstd1 zlib1g && \
    rm -rf /var/lib/apt/lists/* && \
    groupadd --gid 10000 trikv && \
    useradd --uid 10000 --gid trikv --no-create-home --shell /usr/sbin/nologin trikv && \
    install -d -o trikv -g trikv -m 755 /run/trikv
COPY --from=build /out/ /
USER trikv
VOLUME /run/trikv
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s CMD ["trikvctl", "ping"]
ENTRYPOINT ["trikvd"]
