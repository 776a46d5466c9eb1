package clustermesh

import (
	"fmt"
	"strings"
)

// List is a manifest of Secrets, as `kubectl apply` takes it.
type List struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Items      []Secret `json:"items"`
}

// String hides the secrets.
func (List) String() string { return "[secrets]" }

// GoString hides the secrets.
func (List) GoString() string { return "[secrets]" }

// Secret is one of Kubernetes.
type Secret struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   Metadata          `json:"metadata"`
	Type       string            `json:"type"`
	Data       map[string][]byte `json:"data"`
}

// String hides the secrets.
func (Secret) String() string { return "[secret]" }

// GoString hides the secrets.
func (Secret) GoString() string { return "[secret]" }

// Metadata names a Secret.
type Metadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// Manifest returns the Secrets that make a Cilium cluster read a cluster. With a
// KVStoreMesh, that reads it, and the agents read the KVStoreMesh; without, they read it
// themselves. namespace is Cilium's.
func Manifest(cluster string, a Access, namespace string, kvstoremesh bool) List {
	secret := func(name string) Secret {
		return Secret{APIVersion: "v1", Kind: "Secret", Metadata: Metadata{name, namespace}, Type: "Opaque", Data: map[string][]byte{}}
	}
	direct, out := secret(agentSecret), List{APIVersion: "v1", Kind: "List"}
	if kvstoremesh {
		agents := direct
		agents.Data[cluster] = clientConfig([]string{fmt.Sprintf("https://clustermesh-apiserver.%s.svc:2379", namespace)}, "local-")
		direct = secret(meshSecret)
		out.Items = append(out.Items, agents)
	}
	prefix := cluster + "."
	direct.Data[cluster] = clientConfig(a.Endpoints, prefix)
	direct.Data[prefix+caEnd], direct.Data[prefix+certEnd], direct.Data[prefix+keyEnd] = []byte(a.CA), []byte(a.Cert), []byte(a.Key)
	out.Items = append(out.Items, direct)
	return out
}

// clientConfig returns a client configuration with the certificates of a prefix.
func clientConfig(endpoints []string, prefix string) []byte {
	return fmt.Appendf(nil, "endpoints:\n- %s\ntrusted-ca-file: %[2]s%[3]s%[4]s\nkey-file: %[2]s%[3]s%[5]s\ncert-file: %[2]s%[3]s%[6]s\n",
		strings.Join(endpoints, "\n- "), folder, prefix, caEnd, keyEnd, certEnd)
}
