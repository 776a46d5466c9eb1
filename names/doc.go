// Package names is a node's name server: it answers for the services of the cluster and of
// the cluster set, and may pass on the rest.
//
// It is a process of its own, small, and keeps what it knows while the agent, which tells it,
// restarts or is down: names must not depend on either. What a service has is decided in
// the agent.
package names
