package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/internal/benchmesh/peers"
)

// largeAddress is the address of the large service: the last but one of the hub's service
// CIDR, which the API server gives out from the beginning.
var largeAddress = netip.MustParseAddr("10.101.255.254")

// perManifest is how many objects one request applies.
const perManifest = 500

// apply creates the hub's objects: a pod with a policy by labels of peers' identities, so
// that every identity matters to the agent, and the services that peers have backends of.
func (b *bench) apply(ctx context.Context) error {
	documents := []string{ownPod}
	documents = append(documents, service(peers.LargeService, "  clusterIP: "+largeAddress.String()+"\n"))
	for n := range b.hub.world.Shape.Services * len(b.hub.world.Clusters) {
		documents = append(documents, service(peers.ServiceName(n), ""))
	}
	for len(documents) > 0 {
		n := min(perManifest, len(documents))
		if err := b.hub.call(ctx, http.MethodPost, "/v1/apply", []byte(strings.Join(documents[:n], "---\n")), nil); err != nil {
			return fmt.Errorf("apply the hub's objects: %w", err)
		}
		documents = documents[n:]
	}
	return nil
}

func service(name, more string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: %[1]s
  namespace: %[2]s
  annotations:
    service.cilium.io/global: "true"
spec:
%[3]s  selector: {app: %[1]s}
  ports:
  - {name: http, port: %[4]d}
`, name, peers.Namespace, more, peers.Port)
}

const ownPod = `apiVersion: v1
kind: Namespace
metadata:
  name: ` + peers.Namespace + `
---
apiVersion: v1
kind: Pod
metadata:
  name: own
  namespace: ` + peers.Namespace + `
  labels: {app: own}
spec:
  nodeName: n2
  containers:
  - name: own
    image: weft
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: groups
  namespace: ` + peers.Namespace + `
spec:
  endpointSelector:
    matchLabels: {app: own}
  ingress:
  - fromEndpoints:
    - matchLabels:
        ` + peers.GroupLabel + `: g0
      matchExpressions:
      - {key: io.cilium.k8s.policy.cluster, operator: Exists}
`

// pod returns the row of the hub's own pod once it is programmed.
func (k *kernel) pod() (e bpf.Endpoint, ok bool) {
	var key bpf.Addr
	rows := k.maps["endpoints"].Iterate()
	for rows.Next(&key, &e) {
		if e.Held == 0 && e.Set != 0 {
			return e, true
		}
	}
	return e, false
}
