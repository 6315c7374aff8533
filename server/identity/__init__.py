"""Sign-in: who a request comes from, by an access token of the issuer that is configured, wherever it is carried."""
