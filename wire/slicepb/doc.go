// Package slicepb is the protobuf of Cilium's endpoint slices, generated from slice.proto.
//
// Package wire compresses it, checks it, and has it in the form that others use.
package slicepb

//go:generate go run github.com/weft-mesh/weft/internal/protogen slice.proto
