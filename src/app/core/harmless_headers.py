"""Request headers that do not identify a caller: of browsers, HTTP clients, proxies and tracing.

An answer to a request with any other header is not kept by shared caches, since any of them can be a credential that
a middleware, a proxy or a handler reads. So identities that a proxy asserts (`X-Forwarded-User`, `X-Amzn-Oidc-Data`,
`Cf-Access-Jwt-Assertion`, `X-Ms-Client-Principal`) are missing here on purpose, as are prefixes.
"""

from typing import Final

_HTTP: Final = """
    accept accept-charset accept-encoding accept-language accept-datetime cache-control connection content-length
    content-type date expect host http2-settings if-match if-modified-since if-none-match if-range if-unmodified-since
    keep-alive max-forwards origin pragma prefer priority proxy-connection range referer te trailer transfer-encoding
    upgrade user-agent via warning
"""
_BROWSERS: Final = """
    access-control-request-headers access-control-request-method alt-used available-dictionary device-memory dnt
    downlink dpr ect purpose rtt save-data sec-ch-device-memory sec-ch-dpr sec-ch-height sec-ch-prefers-color-scheme
    sec-ch-prefers-reduced-motion sec-ch-prefers-reduced-transparency sec-ch-ua sec-ch-ua-arch sec-ch-ua-bitness
    sec-ch-ua-form-factors sec-ch-ua-full-version sec-ch-ua-full-version-list sec-ch-ua-mobile sec-ch-ua-model
    sec-ch-ua-platform sec-ch-ua-platform-version sec-ch-ua-wow64 sec-ch-viewport-height sec-ch-viewport-width
    sec-ch-width sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-storage-access sec-fetch-user sec-gpc
    sec-purpose upgrade-insecure-requests viewport-width width x-client-data x-moz x-purpose x-requested-with
"""
_PROXIES: Final = """
    cdn-loop cf-connecting-ip cf-connecting-ipv6 cf-ew-via cf-ipcity cf-ipcontinent cf-ipcountry cf-pseudo-ipv4 cf-ray
    cf-region cf-region-code cf-timezone cf-visitor cf-warp-tag-id cf-worker cloudfront-forwarded-proto
    cloudfront-is-android-viewer cloudfront-is-desktop-viewer cloudfront-is-ios-viewer cloudfront-is-mobile-viewer
    cloudfront-is-smarttv-viewer cloudfront-is-tablet-viewer cloudfront-viewer-address cloudfront-viewer-country
    fastly-client-ip fastly-ff fastly-orig-accept-encoding fastly-ssl fastly-temp-xff fly-client-ip
    fly-forwarded-port fly-forwarded-proto fly-forwarded-ssl fly-region fly-request-id forwarded front-end-https
    surrogate-capability true-client-ip x-akamai-config-log-detail x-akamai-edgescape x-amz-cf-id x-appengine-city
    x-appengine-citylatlong x-appengine-country x-appengine-region x-azure-clientip x-azure-fdid x-azure-ref
    x-azure-requestchain x-azure-socketip x-cloud-trace-context x-envoy-attempt-count x-envoy-decorator-operation
    x-envoy-expected-rq-timeout-ms x-envoy-external-address x-envoy-internal x-envoy-original-path x-envoy-peer-metadata
    x-envoy-peer-metadata-id x-fd-healthprobe x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-prefix
    x-forwarded-proto x-forwarded-scheme x-forwarded-server x-forwarded-ssl x-original-forwarded-for x-original-host
    x-original-uri x-original-url x-proxyuser-ip x-real-ip x-request-start x-scheme x-varnish x-vercel-id
    x-vercel-ip-city x-vercel-ip-continent x-vercel-ip-country x-vercel-ip-country-region
"""
_TRACING: Final = """
    b3 baggage correlation-id elastic-apm-traceparent newrelic request-id sentry-trace traceparent tracestate
    uber-trace-id x-amzn-trace-id x-b3-flags x-b3-parentspanid x-b3-sampled x-b3-spanid x-b3-traceid x-correlation-id
    x-datadog-origin x-datadog-parent-id x-datadog-sampling-priority x-datadog-tags x-datadog-trace-id x-request-id
"""

HARMLESS: Final = frozenset(name.encode() for name in f"{_HTTP} {_BROWSERS} {_PROXIES} {_TRACING}".split())
