package wire

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
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

// Field numbers of the messages, as Cilium 1.20 and Kubernetes have them.
const (
	sliceCluster     = 1
	sliceClusterID   = 2
	sliceNamespace   = 3
	sliceName        = 4
	sliceLabels      = 5
	sliceAnnotations = 6
	sliceAddressType = 7
	sliceEndpoints   = 8
	slicePorts       = 9

	endpointAddresses  = 1
	endpointConditions = 2
	endpointHostname   = 3
	endpointNodeName   = 6
	endpointZone       = 7
	endpointHints      = 8

	conditionReady       = 1
	conditionServing     = 2
	conditionTerminating = 3

	hintsForZones = 1
	zoneName      = 1

	portName        = 1
	portProtocol    = 2
	portPort        = 3
	portAppProtocol = 4

	mapKey   = 1
	mapValue = 2
)

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

func (s *ClusterEndpointSlice) proto() []byte {
	var b []byte
	b = appendString(b, sliceCluster, s.Cluster)
	b = appendUint(b, sliceClusterID, uint64(s.ClusterID))
	b = appendString(b, sliceNamespace, s.Namespace)
	b = appendString(b, sliceName, s.Name)
	b = appendMap(b, sliceLabels, s.Labels)
	b = appendMap(b, sliceAnnotations, s.Annotations)
	b = appendString(b, sliceAddressType, s.AddressType)
	for i := range s.Endpoints {
		b = appendBytes(b, sliceEndpoints, s.Endpoints[i].proto())
	}
	for _, p := range s.Ports {
		b = appendBytes(b, slicePorts, p.proto())
	}
	return b
}

func (e *SliceEndpoint) proto() []byte {
	var b []byte
	for _, a := range e.Addresses {
		b = appendString(b, endpointAddresses, a)
	}
	b = appendBytes(b, endpointConditions, e.Conditions.proto())
	b = appendOptional(b, endpointHostname, e.Hostname)
	b = appendOptional(b, endpointNodeName, e.NodeName)
	b = appendOptional(b, endpointZone, e.Zone)
	if len(e.ForZones) > 0 {
		var hints []byte
		for _, z := range e.ForZones {
			hints = appendBytes(hints, hintsForZones, appendString(nil, zoneName, z))
		}
		b = appendBytes(b, endpointHints, hints)
	}
	return b
}

func (c *Conditions) proto() []byte {
	var b []byte
	b = appendBool(b, conditionReady, c.Ready)
	b = appendBool(b, conditionServing, c.Serving)
	return appendBool(b, conditionTerminating, c.Terminating)
}

// proto always writes name and protocol, because Cilium's readers expect them
// even when they are empty.
func (p *SlicePort) proto() []byte {
	var b []byte
	b = appendString(b, portName, p.Name)
	b = appendString(b, portProtocol, p.Protocol)
	if p.Port != 0 {
		b = appendUint(b, portPort, uint64(int64(p.Port)))
	}
	return appendOptional(b, portAppProtocol, p.AppProtocol)
}

func parseSlice(b []byte) (*ClusterEndpointSlice, error) {
	s := &ClusterEndpointSlice{}
	err := fields(b, func(num protowire.Number, f field) (err error) {
		switch num {
		case sliceCluster:
			return f.string(&s.Cluster)
		case sliceClusterID:
			return f.uint32(&s.ClusterID)
		case sliceNamespace:
			return f.string(&s.Namespace)
		case sliceName:
			return f.string(&s.Name)
		case sliceLabels:
			return f.entry(&s.Labels)
		case sliceAnnotations:
			return f.entry(&s.Annotations)
		case sliceAddressType:
			return f.string(&s.AddressType)
		case sliceEndpoints:
			var e SliceEndpoint
			if err := f.message(e.field); err != nil {
				return err
			}
			s.Endpoints = append(s.Endpoints, e)
		case slicePorts:
			var p SlicePort
			if err := f.message(p.field); err != nil {
				return err
			}
			s.Ports = append(s.Ports, p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (e *SliceEndpoint) field(num protowire.Number, f field) error {
	switch num {
	case endpointAddresses:
		var a string
		if err := f.string(&a); err != nil {
			return err
		}
		e.Addresses = append(e.Addresses, a)
	case endpointConditions:
		return f.message(e.Conditions.field)
	case endpointHostname:
		return f.string(&e.Hostname)
	case endpointNodeName:
		return f.string(&e.NodeName)
	case endpointZone:
		return f.string(&e.Zone)
	case endpointHints:
		return f.message(func(num protowire.Number, f field) error {
			if num != hintsForZones {
				return nil
			}
			var zone string
			err := f.message(func(num protowire.Number, f field) error {
				if num != zoneName {
					return nil
				}
				return f.string(&zone)
			})
			e.ForZones = append(e.ForZones, zone)
			return err
		})
	}
	return nil
}

func (c *Conditions) field(num protowire.Number, f field) error {
	switch num {
	case conditionReady:
		return f.bool(&c.Ready)
	case conditionServing:
		return f.bool(&c.Serving)
	case conditionTerminating:
		return f.bool(&c.Terminating)
	}
	return nil
}

func (p *SlicePort) field(num protowire.Number, f field) error {
	switch num {
	case portName:
		return f.string(&p.Name)
	case portProtocol:
		return f.string(&p.Protocol)
	case portPort:
		return f.int32(&p.Port)
	case portAppProtocol:
		return f.string(&p.AppProtocol)
	}
	return nil
}

// field is the value of one field: bytes for strings and messages, number for
// integers and booleans.
type field struct {
	typ    protowire.Type
	bytes  []byte
	number uint64
}

var errFieldType = errors.New("unexpected type")

// fields calls each for the fields of a message, in order. For types that none of our
// messages use, the value is left empty.
func fields(b []byte, each func(protowire.Number, field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		f := field{typ: typ}
		switch typ {
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			f.number, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := each(num, f); err != nil {
			return fmt.Errorf("field %d: %w", num, err)
		}
	}
	return nil
}

func (f field) string(to *string) error {
	if f.typ != protowire.BytesType {
		return errFieldType
	}
	*to = string(f.bytes)
	return nil
}

func (f field) message(each func(protowire.Number, field) error) error {
	if f.typ != protowire.BytesType {
		return errFieldType
	}
	return fields(f.bytes, each)
}

func (f field) uint32(to *uint32) error {
	if f.typ != protowire.VarintType {
		return errFieldType
	}
	*to = uint32(f.number)
	return nil
}

func (f field) int32(to *int32) error {
	if f.typ != protowire.VarintType {
		return errFieldType
	}
	*to = int32(f.number)
	return nil
}

func (f field) bool(to **bool) error {
	if f.typ != protowire.VarintType {
		return errFieldType
	}
	v := f.number != 0
	*to = &v
	return nil
}

// entry adds one entry of a protobuf map.
func (f field) entry(to *map[string]string) error {
	var k, v string
	err := f.message(func(num protowire.Number, f field) error {
		switch num {
		case mapKey:
			return f.string(&k)
		case mapValue:
			return f.string(&v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if *to == nil {
		*to = map[string]string{}
	}
	(*to)[k] = v
	return nil
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func appendString(b []byte, num protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), v)
}

// appendOptional leaves "" out.
func appendOptional(b []byte, num protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return appendString(b, num, v)
}

func appendUint(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendBool(b []byte, num protowire.Number, v *bool) []byte {
	if v == nil {
		return b
	}
	return appendUint(b, num, protowire.EncodeBool(*v))
}

// appendMap writes the entries sorted by key.
func appendMap(b []byte, num protowire.Number, m map[string]string) []byte {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b = appendBytes(b, num, appendString(appendString(nil, mapKey, k), mapValue, m[k]))
	}
	return b
}
