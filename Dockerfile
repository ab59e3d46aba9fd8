# The image of everything: the API, the workers, migrations and scripts differ by their command.
#   docker build -t slipway .
#   docker build -t slipway --build-arg REQUIREMENTS=requirements-tracing.txt .
# (or requirements-s3.txt, for uploads in a bucket)

FROM python:3.13-slim AS builder
ARG REQUIREMENTS=requirements.txt
WORKDIR /build
RUN python -m venv --without-pip /venv
COPY requirements*.txt ./
# Exactly what is locked, and nothing that would have to be compiled.
RUN pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
    --require-hashes --no-deps --only-binary=:all: -r "$REQUIREMENTS"


FROM python:3.13-slim
# A number, so that Kubernetes can see that it is not root.
RUN groupadd --gid 10001 app && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /code --shell /usr/sbin/nologin app
COPY --from=builder /venv /venv
WORKDIR /code
COPY src ./src
# Compiled here, since the user can write nothing but the log of ENVIRONMENT=local, and uploads: mount a volume there.
RUN /venv/bin/python -m compileall -q src && install -d -o 10001 -g 10001 src/app/logs .data/uploads
# `app` and `src.app` are both importable in /code, and so are the scripts.
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/code/src \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# How gunicorn and uvicorn drain, and that neither believes X-Forwarded-For: the app decides (TRUSTED_PROXIES).
ENV GUNICORN_CMD_ARGS="--config=/code/src/gunicorn.conf.py" \
    UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=10 \
    UVICORN_PROXY_HEADERS=false \
    UVICORN_SERVER_HEADER=false
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/api/v1/health', timeout=4)"]

# -------- replace with comment to run with gunicorn --------
CMD ["uvicorn", "app.main:app", "--host", "0.0.0.0", "--port", "8000", "--reload"]
# CMD ["gunicorn", "app.main:app", "-w", "4", "-k", "uvicorn.workers.UvicornWorker", "-b", "0.0.0.0:8000"]
