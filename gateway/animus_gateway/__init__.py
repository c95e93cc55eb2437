"""The HTTP/JSON face of Animus: routes from the contract's google.api.http rules, answers from the gRPC services."""
