// Package expectations holds what Kubernetes expects of services, as a table: each spec of its
// own end-to-end tests with what must hold for a client, in our words.
//
// A row is shown on a whole cluster in one process (see meshtest): manifests go through the API
// server, its controllers and the agents into maps, and packets through package model, which is
// the specification of what the kernel does with them. What only the real thing shows is left to
// a scenario, by its name. docs/expectations.md is this table; to write it again:
//
//	go test ./internal/expectations -run TestTheManualIsTheTable -write
package expectations
