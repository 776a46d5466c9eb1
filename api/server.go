package api

import "time"

// States of an API server.
const (
	ServerLeads   = "leads"   // it runs the controllers
	ServerReady   = "ready"   // it would, if the one that leads ended
	ServerMissing = "missing" // it gives no sign of life, and was not stopped on purpose
)

// ServerStatus is one API server of the cluster.
type ServerStatus struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"` // the address at which it is reached
	ID      string `json:"id"`
	URL     string `json:"url"`
	State   string `json:"state"` // one of the constants above
	// Since is when the state began, as far as the server that answers knows: it leads,
	// was started, or is missing since then. AgeSeconds is how long ago that was.
	Since      time.Time `json:"since,omitzero"`
	AgeSeconds float64   `json:"ageSeconds"`
	Version    string    `json:"version,omitempty"`
	// Answers is set for the server that answers.
	Answers bool `json:"answers,omitempty"`
}

// ServerList answers GET /v1/servers.
type ServerList struct {
	Cluster string         `json:"cluster"`
	Servers []ServerStatus `json:"servers"`
}
