package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
)

// NamesPath is where an agent tells a node's name server what services there are.
const NamesPath = "/v1/names"

// NamedService is a service as a name server knows it.
type NamedService struct {
	// Set says that it is of the cluster set, and not of the cluster alone.
	Set       bool   `json:"set,omitempty"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Addresses are the service's own. Headless services have none, and Endpoints instead.
	Addresses []netip.Addr    `json:"addresses,omitempty"`
	Ports     []NamedPort     `json:"ports,omitempty"`
	Headless  bool            `json:"headless,omitempty"`
	Endpoints []NamedEndpoint `json:"endpoints,omitempty"`
	// Gone says that there is no service of this name any more.
	Gone bool `json:"gone,omitempty"`
}

// NamedPort is a port that has a name.
type NamedPort struct {
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
}

// NamedEndpoint is a pod behind a headless service.
type NamedEndpoint struct {
	Cluster  string      `json:"cluster"`
	Hostname string      `json:"hostname,omitempty"`
	Address  netip.Addr  `json:"address"`
	Ports    []NamedPort `json:"ports,omitempty"`
}

// NamesEvent is what has changed. Complete is set once everything was told.
type NamesEvent struct {
	Services []NamedService `json:"services,omitempty"`
	Complete bool           `json:"complete,omitempty"`
}

// FollowNames calls each with every service, and then with changes, until ctx or the agent
// ends.
func (c *Client) FollowNames(ctx context.Context, each func(NamesEvent) error) error {
	_, err := c.stream(ctx, NamesPath, nil, func(line []byte) error {
		var e NamesEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("read names: %w", err)
		}
		return each(e)
	})
	return err
}
