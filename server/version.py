"""The version of this server, as its API and its metrics tell it."""

VERSION = "0.1.0"
