package api

import (
	"bytes"
	"encoding/json"
)

// Owners of objects. Any other is the name of a source, such as OwnerManifests: what a
// source owns is changed by nobody else, and deleted when the source no longer has it.
const (
	// OwnerApply is whoever uses `weft apply`.
	OwnerApply = "apply"
	// OwnerManifests is the folder of manifests that the API server follows.
	OwnerManifests = "manifests"
	// OwnerKubernetes is the Kubernetes API server that the API server reads.
	OwnerKubernetes = "kubernetes"
	// OwnerMCS owns what follows from the service exports of all clusters.
	OwnerMCS = "mcs"
	// OwnerDerived owns what is derived from other objects: the endpoint slices of
	// services.
	OwnerDerived = "weft"
)

// OwnerOf reads the owner in a stored object: its field manager, as Kubernetes calls it. An
// object without one was applied.
func OwnerOf(object []byte) string {
	var o struct {
		Metadata struct {
			Labels struct {
				ManagedBy string `json:"endpointslice.kubernetes.io/managed-by"`
			} `json:"labels"`
			ManagedFields []struct {
				Manager string `json:"manager"`
			} `json:"managedFields"`
		} `json:"metadata"`
	}
	// Most objects have neither, and need not be decoded.
	if !bytes.Contains(object, []byte(`"managedFields"`)) && !bytes.Contains(object, []byte("/managed-by")) {
		return OwnerApply
	}
	if json.Unmarshal(object, &o) != nil {
		return OwnerApply
	}
	if o.Metadata.Labels.ManagedBy == OwnerDerived {
		return OwnerDerived
	}
	for _, m := range o.Metadata.ManagedFields {
		if m.Manager != "" {
			return m.Manager
		}
	}
	return OwnerApply
}
