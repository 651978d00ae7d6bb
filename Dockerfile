# The image of auth-sidecar: one virtual environment, compiled, for a user without name and a read-only root.
# Behind an index of your own: docker build --secret id=pip,src=pip.conf .

FROM python:3.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# All that comes from an index, as wheels, each by its hash. What builds the package stays out of the environment.
COPY deploy/image/ deploy/image/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv /build \
    && /build/bin/python -m pip install --require-hashes --only-binary :all: --no-deps -r deploy/image/build.lock \
    && python -m venv --without-pip /opt/auth-sidecar \
    && /build/bin/python -m pip --python /opt/auth-sidecar/bin/python install \
        --require-hashes --only-binary :all: --no-deps --no-compile -r deploy/image/requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY addons/ addons/
COPY sidecar/ sidecar/
RUN --network=none \
    /build/bin/python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/python -m pip --python /opt/auth-sidecar/bin/python install \
        --no-index --no-deps --no-compile /wheels/auth_sidecar-*.whl \
    && python -O -m compileall -q --invalidation-mode unchecked-hash /opt/auth-sidecar/lib


FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="auth-sidecar" \
    org.opencontainers.image.description="An HTTP sidecar proxy that keeps the tokens of unmodified scripts fresh" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="python:3.13-slim-bookworm"

# The base image has no compiled standard library, and nothing can be written at run time. The two directories are where
# volumes go: a new volume takes owner and mode from here.
RUN --network=none \
    python -O -m compileall -q --invalidation-mode unchecked-hash -x '/(site-packages|test)/' /usr/local/lib/python3.13 \
    && python -m pip uninstall --quiet --yes --root-user-action ignore pip \
    && install -d -o 65532 -g 65532 -m 0700 /var/lib/auth-sidecar \
    && install -d -o 65532 -g 65532 -m 0755 /run/auth-sidecar

COPY --from=build /opt/auth-sidecar /opt/auth-sidecar
ENV PATH=/opt/auth-sidecar/bin:$PATH \
    PYTHONOPTIMIZE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    STATE_DIRECTORY=/var/lib/auth-sidecar
USER 65532:65532
VOLUME ["/var/lib/auth-sidecar"]
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
# No HEALTHCHECK: Kubernetes ignores it, each check would start a Python, and the admin port is the configuration's.
ENTRYPOINT ["auth-sidecar"]
CMD ["run"]
