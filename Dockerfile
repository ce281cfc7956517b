FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pgtlsproxy ./pgtlsproxy
RUN pip wheel --no-cache-dir --wheel-dir /wheels .
# Without pip: what runs in production installs nothing.
RUN python -m venv --without-pip /opt/pgtlsproxy \
    && pip --python /opt/pgtlsproxy/bin/python install --no-cache-dir --no-index --find-links /wheels pgtlsproxy

FROM python:3.12-slim
# ca-certificates: what sslrootcert=system trusts.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 pgtlsproxy \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pgtlsproxy \
    && install -d -o 65532 -g 65532 -m 0755 /run/pgtlsproxy
COPY --from=build /opt/pgtlsproxy /opt/pgtlsproxy
ENV PATH=/opt/pgtlsproxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
STOPSIGNAL SIGTERM
# Asks the status listener (status: {listen: "127.0.0.1:9643"}); without one, run with --no-healthcheck.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["pgtlsproxy", "status", "--probe", "livez"]
ENTRYPOINT ["pgtlsproxy"]
CMD ["serve", "-c", "/etc/pgtlsproxy/pgtlsproxy.yaml"]
