"""HTTP/1.1 (RFC 9110 and 9112): a parser of requests that knows no transport, and connections that answer them."""
