package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// EndpointRequest asks a node's agent for something about the network of one pod. All
// requests have this form; Remove and Look need no more than the pod's name.
type EndpointRequest struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// UID distinguishes pods that have the same name one after the other. Empty: the pod
	// that has the name now.
	UID string `json:"uid,omitempty"`
	// Container is the ID of the pod's sandbox, which a runtime may replace while the pod
	// remains. Empty: whichever it is.
	Container string `json:"container,omitempty"`
	// Netns is the pod's network namespace as a file. Empty: the agent makes one, and
	// removes it with the pod.
	Netns string `json:"netns,omitempty"`
	// Interface is the name of the device in the pod; eth0 if empty.
	Interface string `json:"interface,omitempty"`
	// Addresses are those that the pod should get, at most one of each IP family. On a node
	// with pod CIDRs of both, a pod has the same place in both, so that one names the other.
	// Empty: the agent chooses.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Network is the runtime's name for the network that the pod is attached to. Retain is
	// about one network; a pod without one is never removed by it.
	Network string `json:"network,omitempty"`
	// WaitSeconds is how long Add waits for the pod's identity, at most MostWait. 0: it
	// returns while packets may not pass yet.
	WaitSeconds float64 `json:"waitSeconds,omitempty"`
}

// MostWait bounds how long Add waits for a pod's identity.
const MostWait = time.Minute

// EndpointRetention says which pods of a network have remained, by their sandboxes. The
// networks of all others have no owner.
type EndpointRetention struct {
	Network string `json:"network"`
	// Attachments may be empty, but not missing.
	Attachments []EndpointAttachment `json:"attachments"`
}

// EndpointAttachment is a pod's device: a sandbox and the device's name in it.
type EndpointAttachment struct {
	Container string `json:"container"`
	Interface string `json:"interface"`
}

// EndpointReadiness says whether pods can be added to a node.
type EndpointReadiness struct {
	Ready bool `json:"ready"`
	// Limited says that pods of before may be cut off, too.
	Limited bool `json:"limited,omitempty"`
	// Why is what is missing, and Hint what to do about it.
	Why  string `json:"why,omitempty"`
	Hint string `json:"hint,omitempty"`
}

// EndpointResult is the network of a pod.
type EndpointResult struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
	Container string `json:"container,omitempty"`
	Netns     string `json:"netns"`
	// Interface and MAC are those of the device in the pod, Device and DeviceMAC those of
	// its other end on the node.
	Interface string `json:"interface"`
	MAC       string `json:"mac"`
	Device    string `json:"device"`
	DeviceMAC string `json:"deviceMAC"`
	// MTU is in bytes.
	MTU       int             `json:"mtu"`
	Addresses []netip.Prefix  `json:"addresses"`
	Routes    []EndpointRoute `json:"routes"`
	// Held says that no packet passes yet: the pod's identity is not known.
	Held bool `json:"held,omitempty"`
}

// EndpointRoute is a route in the pod. Without a gateway, the destination is on the link.
type EndpointRoute struct {
	Destination netip.Prefix `json:"destination"`
	Gateway     netip.Addr   `json:"gateway,omitzero"`
}

// EndpointRequests are what the requester of pods' networks may ask of an agent. Each may
// be repeated at any time, by another requester too; requests for one pod are handled one
// after the other.
type EndpointRequests interface {
	// Add gives a pod its network, or finds it as it is. When it returns, the pod's
	// device is up; packets pass as soon as the pod's identity is known. A pod of the
	// same name with another UID is removed first.
	Add(ctx context.Context, r EndpointRequest) (*EndpointResult, error)
	// Remove takes a pod's network away. It is nil if there is none, and if the name now
	// belongs to another pod or container.
	Remove(ctx context.Context, r EndpointRequest) error
	// Look returns a pod's network as it is in the kernel. The error says what is missing.
	Look(ctx context.Context, r EndpointRequest) (*EndpointResult, error)
	// Retain takes away the networks of pods that were attached to a network and have not
	// remained. It spares pods that are added meanwhile, and goes on after a failure.
	Retain(ctx context.Context, r EndpointRetention) error
}

// Key is the pod as people write it.
func (r EndpointRequest) Key() string { return r.Namespace + "/" + r.Name }

const (
	maxEndpointRequest = 64 << 10
	// maxEndpointRetention has room for tens of thousands of pods.
	maxEndpointRetention = 8 << 20
)

// ReadEndpointRequest decodes and validates a request.
func ReadEndpointRequest(in io.Reader) (EndpointRequest, error) {
	return readRequest[EndpointRequest](in, maxEndpointRequest)
}

// ReadEndpointRetention decodes and validates what Retain is asked for.
func ReadEndpointRetention(in io.Reader) (EndpointRetention, error) {
	return readRequest[EndpointRetention](in, maxEndpointRetention)
}

func readRequest[R interface{ Validate() error }](in io.Reader, limit int64) (r R, err error) {
	text, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil {
		return r, fmt.Errorf("read request: %w", err)
	}
	if int64(len(text)) > limit {
		return r, Invalid("", "the request is longer than %d bytes", limit)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return r, Invalid("", "the request cannot be read: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return r, Invalid("", "something follows the request")
	}
	return r, r.Validate()
}

var (
	// podName and namespaceName are Kubernetes' forms. Neither has an underscore or slash.
	podName       = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	namespaceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	opaque        = regexp.MustCompile(`^[!-~]{0,128}$`)
	deviceName    = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.]{0,14}$`)
)

// Validate reports every mistake at once.
func (r EndpointRequest) Validate() error {
	var wrong []string
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if len(r.Namespace) > 63 || !namespaceName.MatchString(r.Namespace) {
		add("namespace %q is not a namespace's name", r.Namespace)
	}
	if len(r.Name) > 253 || !podName.MatchString(r.Name) {
		add("name %q is not a pod's name", r.Name)
	}
	if !opaque.MatchString(r.UID) {
		add("uid %q is not up to 128 printable characters", r.UID)
	}
	if !opaque.MatchString(r.Container) {
		add("container %q is not up to 128 printable characters", r.Container)
	}
	if r.Netns != "" && (!filepath.IsAbs(r.Netns) || filepath.Clean(r.Netns) != r.Netns || strings.ContainsRune(r.Netns, 0)) {
		add("netns %q is not an absolute path in its shortest form", r.Netns)
	}
	if r.Interface != "" && (r.Interface == "lo" || !deviceName.MatchString(r.Interface)) {
		add("interface %q is not a device's name of up to 15 letters and digits", r.Interface)
	}
	if len(r.Addresses) > 2 || len(r.Addresses) == 2 && r.Addresses[0].BitLen() == r.Addresses[1].BitLen() {
		add("%d addresses are more than one of each IP family", len(r.Addresses))
	}
	if !opaque.MatchString(r.Network) {
		add("network %q is not up to 128 printable characters", r.Network)
	}
	if !(r.WaitSeconds >= 0 && r.WaitSeconds <= MostWait.Seconds()) {
		add("waitSeconds %v is not between 0 and %v", r.WaitSeconds, MostWait.Seconds())
	}
	for _, a := range r.Addresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			add("address %v is not one that a pod can have", a)
		}
	}
	if len(wrong) > 0 {
		return Invalid("", "%s", strings.Join(wrong, "; "))
	}
	return nil
}

// Validate reports the mistakes of the first wrong attachment.
func (r EndpointRetention) Validate() error {
	if r.Network == "" || !opaque.MatchString(r.Network) {
		return Invalid("", "network %q is not 1 to 128 printable characters", r.Network)
	}
	if r.Attachments == nil {
		return Invalid("name those that remain; an empty list removes all", "the attachments are missing")
	}
	for _, a := range r.Attachments {
		if a.Container == "" || !opaque.MatchString(a.Container) {
			return Invalid("", "container %q is not 1 to 128 printable characters", a.Container)
		}
		if a.Interface == "" || !opaque.MatchString(a.Interface) {
			return Invalid("", "interface %q is not 1 to 128 printable characters", a.Interface)
		}
	}
	return nil
}

// Paths of the requests, on the agent's socket alone.
const (
	EndpointAddPath    = "/v1/endpoint/add"
	EndpointRemovePath = "/v1/endpoint/remove"
	EndpointLookPath   = "/v1/endpoint/look"
	EndpointRetainPath = "/v1/endpoint/retain"
	EndpointReadyPath  = "/v1/endpoint/ready"
)

// endpoints makes requests to the agent of a client.
type endpoints struct{ c *Client }

// Endpoints are the requests for pods' networks, which the agent takes on its socket alone.
func (c *Client) Endpoints() EndpointRequests { return endpoints{c} }

func (e endpoints) Add(ctx context.Context, r EndpointRequest) (*EndpointResult, error) {
	out := &EndpointResult{}
	return out, e.c.call(ctx, http.MethodPost, EndpointAddPath, nil, r, out)
}

func (e endpoints) Remove(ctx context.Context, r EndpointRequest) error {
	return e.c.call(ctx, http.MethodPost, EndpointRemovePath, nil, r, nil)
}

func (e endpoints) Look(ctx context.Context, r EndpointRequest) (*EndpointResult, error) {
	out := &EndpointResult{}
	return out, e.c.call(ctx, http.MethodPost, EndpointLookPath, nil, r, out)
}

func (e endpoints) Retain(ctx context.Context, r EndpointRetention) error {
	return e.c.call(ctx, http.MethodPost, EndpointRetainPath, nil, r, nil)
}

// EndpointsReady says whether pods can be added to this machine's node.
func (c *Client) EndpointsReady(ctx context.Context) (EndpointReadiness, error) {
	var out EndpointReadiness
	return out, c.call(ctx, http.MethodGet, EndpointReadyPath, nil, nil, &out)
}
