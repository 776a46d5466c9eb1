package wire

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/wire/slicepb"
)

// ServiceNameLabel names, on an endpoint slice, the service it belongs to.
const ServiceNameLabel = "kubernetes.io/service-name"

// ManagedBy is the value of an endpoint slice's managed-by label
// (endpointslice.kubernetes.io/managed-by) for slices that the API server
// derives from services and pods.
const ManagedBy = "weft"

// ClusterEndpointSlice holds some of a global service's backends in the newer format,
// with conditions. In etcd it is protobuf compressed with zstd.
type ClusterEndpointSlice struct {
	Cluster     string
	ClusterID   uint32
	Namespace   string
	Name        string
	Labels      map[string]string // ServiceNameLabel names the service
	Annotations map[string]string
	AddressType string // IPv4 or IPv6
	Endpoints   []SliceEndpoint
	Ports       []SlicePort
}

// Service is the name of the service that the slice belongs to.
func (s *ClusterEndpointSlice) Service() string { return s.Labels[ServiceNameLabel] }

// SliceEndpoint is a backend. Hostname, NodeName and Zone may be "".
type SliceEndpoint struct {
	Addresses  []string
	Conditions Conditions
	Hostname   string
	NodeName   string
	Zone       string
	ForZones   []string
}

// Conditions are those of Kubernetes. nil means "unspecified": true for Ready, the
// same as Ready for Serving, and false for Terminating.
type Conditions struct {
	Ready, Serving, Terminating *bool
}

// SlicePort is a port of every endpoint of a slice. Port 0 means "unspecified".
type SlicePort struct {
	Name        string
	Protocol    string // "" is TCP
	Port        int32
	AppProtocol string
}

// maxSliceSize is the largest decompressed slice we accept, in bytes, as in Cilium.
// It keeps a peer from filling our memory with a small value.
const maxSliceSize = 16 << 20

// EncodeAll and DecodeAll are safe for concurrent use. The codecs hold channels, so
// they are created at start, outside any synctest bubble.
var encoder, decoder = codecs()

func codecs() (*zstd.Encoder, *zstd.Decoder) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	e.EncodeAll(nil, nil)
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxSliceSize))
	if err != nil {
		panic(err)
	}
	return e, d
}

// Marshal encodes the slice for etcd. Equal slices give equal bytes.
func (s *ClusterEndpointSlice) Marshal() []byte {
	return encoder.EncodeAll(s.proto(), nil)
}

// ParseClusterEndpointSlice reads a slice from etcd. It skips unknown fields and does
// not check the values; see ParseSlice.
func ParseClusterEndpointSlice(b []byte) (*ClusterEndpointSlice, error) {
	raw, err := decoder.DecodeAll(b, nil)
	if err != nil {
		return nil, fmt.Errorf("decompress endpoint slice: %w", err)
	}
	s, err := parseSlice(raw)
	if err != nil {
		return nil, fmt.Errorf("read endpoint slice: %w", err)
	}
	return s, nil
}

// Entries of maps are written in order; unknown fields are not kept.
var (
	deterministic = proto.MarshalOptions{Deterministic: true}
	known         = proto.UnmarshalOptions{DiscardUnknown: true}
)

func (s *ClusterEndpointSlice) proto() []byte {
	m := &slicepb.Slice{
		Cluster: &s.Cluster, ClusterId: &s.ClusterID, Namespace: &s.Namespace, Name: &s.Name, Labels: s.Labels, Annotations: s.Annotations,
		AddressType: &s.AddressType, Endpoints: make([]*slicepb.Endpoint, len(s.Endpoints)), Ports: make([]*slicepb.Port, len(s.Ports)),
	}
	for i := range s.Endpoints {
		m.Endpoints[i] = s.Endpoints[i].message()
	}
	for i := range s.Ports {
		m.Ports[i] = s.Ports[i].message()
	}
	b, err := deterministic.Marshal(m)
	if err != nil {
		panic(err) // nothing is required, and proto2 takes any string
	}
	return b
}

func (e *SliceEndpoint) message() *slicepb.Endpoint {
	m := &slicepb.Endpoint{
		Addresses:  e.Addresses,
		Conditions: &slicepb.Conditions{Ready: e.Conditions.Ready, Serving: e.Conditions.Serving, Terminating: e.Conditions.Terminating},
		Hostname:   unlessZero(&e.Hostname), NodeName: unlessZero(&e.NodeName), Zone: unlessZero(&e.Zone),
	}
	if len(e.ForZones) > 0 {
		m.Hints = &slicepb.Hints{}
		for i := range e.ForZones {
			m.Hints.ForZones = append(m.Hints.ForZones, &slicepb.ForZone{Name: &e.ForZones[i]})
		}
	}
	return m
}

// message always has name and protocol, because Cilium's readers expect them even when they
// are empty.
func (p *SlicePort) message() *slicepb.Port {
	return &slicepb.Port{Name: &p.Name, Protocol: &p.Protocol, Port: unlessZero(&p.Port), AppProtocol: unlessZero(&p.AppProtocol)}
}

// unlessZero leaves a zero value out.
func unlessZero[T comparable](v *T) *T {
	var zero T
	if *v == zero {
		return nil
	}
	return v
}

func parseSlice(b []byte) (*ClusterEndpointSlice, error) {
	m := &slicepb.Slice{}
	if err := known.Unmarshal(b, m); err != nil {
		return nil, err
	}
	s := &ClusterEndpointSlice{
		Cluster: m.GetCluster(), ClusterID: m.GetClusterId(), Namespace: m.GetNamespace(), Name: m.GetName(), Labels: m.Labels, Annotations: m.Annotations,
		AddressType: m.GetAddressType(),
	}
	if len(m.Endpoints) > 0 {
		s.Endpoints = make([]SliceEndpoint, len(m.Endpoints))
	}
	for i, e := range m.Endpoints {
		s.Endpoints[i] = SliceEndpoint{
			Addresses: e.Addresses, Hostname: e.GetHostname(), NodeName: e.GetNodeName(), Zone: e.GetZone(),
		}
		if c := e.Conditions; c != nil {
			s.Endpoints[i].Conditions = Conditions{Ready: c.Ready, Serving: c.Serving, Terminating: c.Terminating}
		}
		for _, z := range e.Hints.GetForZones() {
			s.Endpoints[i].ForZones = append(s.Endpoints[i].ForZones, z.GetName())
		}
	}
	for _, p := range m.Ports {
		s.Ports = append(s.Ports, SlicePort{Name: p.GetName(), Protocol: p.GetProtocol(), Port: p.GetPort(), AppProtocol: p.GetAppProtocol()})
	}
	return s, nil
}
