package sglargs

import "slices"

// secrets are the fields whose values are secret.
var secrets = []string{"admin_api_key", "api_key", "ssl_keyfile_password"}

// Secrets returns the fields whose values belong into no message, log or stored file.
func Secrets() []string { return slices.Clone(secrets) }
