package registry

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// portService is a service with some more of a spec.
func portService(name, spec string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + ", namespace: shop}\nspec: {selector: {app: web}, " + spec + "}\n"
}

// nodePortsIn shows a service's node ports: those that nobody asked for as N, numbered.
func nodePortsIn(t *testing.T, r *Registry, name string) string {
	t.Helper()
	list, err := r.Get(t.Context(), "services", "shop", name)
	if err != nil {
		return err.Error()
	}
	var svc corev1.Service
	if err := json.Unmarshal(list.Items[0], &svc); err != nil {
		t.Fatal(err)
	}
	chosen := map[int32]string{}
	var out []string
	for _, p := range svc.Spec.Ports {
		text := "-"
		switch {
		case p.NodePort >= 30000 && p.NodePort < 30100: // asked for
			text = strconv.Itoa(int(p.NodePort))
		case p.NodePort > 32767:
			t.Errorf("node port %d", p.NodePort)
		case p.NodePort != 0:
			if chosen[p.NodePort] == "" {
				chosen[p.NodePort] = fmt.Sprint("N", len(chosen)+1)
			}
			text = chosen[p.NodePort]
		}
		out = append(out, text)
	}
	if h := svc.Spec.HealthCheckNodePort; h != 0 {
		text := "health"
		if h < 30100 {
			text += fmt.Sprint(" ", h)
		}
		if chosen[h] != "" {
			t.Errorf("health checks are at node port %d, which has another use", h)
		}
		out = append(out, text)
	}
	read, err := service.FromKubernetes(&svc)
	if err != nil {
		t.Error(err)
	}
	if int32(read.HealthPort) != svc.Spec.HealthCheckNodePort {
		t.Errorf("health checks are at %d, read is %d", svc.Spec.HealthCheckNodePort, read.HealthPort)
	}
	for i, p := range read.Ports {
		if int32(p.NodePort) != svc.Spec.Ports[i].NodePort {
			t.Errorf("%v is read of %v", p, svc.Spec.Ports[i])
		}
	}
	return strings.Join(out, " ")
}

// heldPorts are the node ports that the store says are in use.
func heldPorts(t *testing.T, r *Registry) (out []string) {
	t.Helper()
	kvs, _, err := r.store.List(t.Context(), wire.NodePortsPrefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range kvs {
		out = append(out, kv.Key[len(wire.NodePortsPrefix):]+" "+string(kv.Value))
	}
	return out
}

// Node ports are what Kubernetes makes of the same manifests, one after the other. A result
// that begins with ! is a refusal, after which all is as before.
func TestNodePorts(t *testing.T) {
	const (
		plain  = "ports: [{port: 80}]"
		port   = "type: NodePort, ports: [{port: 80}]"
		asked  = "type: NodePort, ports: [{port: 80, nodePort: 30080}]"
		two    = "type: NodePort, ports: [{name: a, port: 80}, {name: b, port: 81}]"
		dns    = "type: NodePort, ports: [{name: a, port: 53, protocol: UDP}, {name: b, port: 53}]"
		lb     = "type: LoadBalancer, ports: [{port: 80}]"
		local  = "type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]"
		lbNone = "type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]"
	)
	for name, steps := range map[string][]string{
		"none":                         {plain, "-"},
		"chosen, and kept":             {port, "N1", port, "N1"},
		"asked for, and kept":          {asked, "30080", port, "30080", asked, "30080"},
		"several":                      {two, "N1 N2"},
		"two protocols share it":       {dns, "N1 N1"},
		"as one of them says":          {strings.Replace(dns, "53}", "53, nodePort: 30053}", 1), "30053 30053"},
		"or not":                       {"type: NodePort, ports: [{name: a, port: 53, protocol: UDP, nodePort: 30053}, {name: b, port: 53, nodePort: 30054}]", "30053 30054"},
		"it goes with the name":        {strings.Replace(two, "port: 81", "port: 81, nodePort: 30081", 1), "N1 30081", "type: NodePort, ports: [{name: b, port: 82}, {name: c, port: 81}]", "30081 N1"},
		"it can change":                {asked, "30080", "type: NodePort, ports: [{port: 80, nodePort: 30081}]", "30081"},
		"it goes with the type":        {asked, "30080", plain, "-", port, "N1"},
		"load balancer":                {lb, "N1", lbNone, "N1"},
		"load balancer without":        {lbNone, "-", lb, "N1"},
		"load balancer that asks":      {"type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 81}]", "30080 -"},
		"health checks":                {local, "N1 health", local, "N1 health", lb, "N1", local, "N1 health"},
		"health checks asked for":      {local + ", healthCheckNodePort: 30090", "N1 health 30090", local, "N1 health 30090", local + ", healthCheckNodePort: 30091", "N1 health 30091", plain, "-"},
		"health checks alone":          {strings.Replace(local, "Local", "Local, allocateLoadBalancerNodePorts: false", 1), "- health"},
		"health checks of a node port": {port + ", externalTrafficPolicy: Local", "N1", port + ", externalTrafficPolicy: Local, healthCheckNodePort: 30090", "N1"},
		"health checks at a node port": {"type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30080, ports: [{port: 80, nodePort: 30080}]", "!spec.healthCheckNodePort is 30080, which is the node port of one of spec.ports"},
		"health checks elsewhere":      {local + ", healthCheckNodePort: 8080", "!spec.healthCheckNodePort is 8080; choose one from 30000 to 32767"},
		"health checks at another's":   {local + ", healthCheckNodePort: 30099", "!spec.healthCheckNodePort 30099 belongs to service shop/other"},
		"outside of the range":         {"type: NodePort, ports: [{port: 80, nodePort: 8080}]", "!spec.ports[0].nodePort is 8080; choose one from 30000 to 32767"},
		"one beyond the range":         {"type: NodePort, ports: [{port: 80, nodePort: 32768}]", "!spec.ports[0].nodePort is 32768"},
		"twice":                        {"type: NodePort, ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 81, nodePort: 30080}]", "!spec.ports[1].nodePort: 30080/TCP is there twice"},
		"of a type that has none":      {"ports: [{port: 80, nodePort: 30080}]", "!spec.ports[0].nodePort is 30080, which a service of type ClusterIP cannot have"},
		"SCTP":                         {"type: NodePort, ports: [{port: 80, protocol: SCTP}]", "!spec.ports[0].protocol is SCTP, which node ports do not carry"},
		"headless":                     {"type: NodePort, clusterIP: None, ports: [{port: 80}]", "!spec.clusterIP is None, and a service of type NodePort needs an address"},
		"a policy that is not one":     {port + ", externalTrafficPolicy: Near", "!spec.externalTrafficPolicy Near does not exist; write Cluster or Local"},
		"another's":                    {"type: NodePort, ports: [{port: 80, nodePort: 30099}]", "!spec.ports[0].nodePort 30099 belongs to service shop/other; choose another one"},
		"another's, other protocol":    {"type: NodePort, ports: [{port: 80, protocol: UDP, nodePort: 30099}]", "!belongs to service shop/other"},
		"another's, on the way":        {port, "N1", "type: NodePort, ports: [{port: 80, nodePort: 30099}]", "!belongs to service shop/other"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fixture(t)
			apply(t, r, portService("other", "type: NodePort, ports: [{port: 80, nodePort: 30099}]"))
			for i := 0; i < len(steps); i += 2 {
				before := heldPorts(t, r)
				_, err := r.Apply(t.Context(), []byte(portService("web", steps[i])), api.ManifestOptions{})
				if want, refused := strings.CutPrefix(steps[i+1], "!"); refused {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%s: %v, want a refusal with %q", steps[i], err, want)
					}
					if !slices.Equal(before, heldPorts(t, r)) {
						t.Errorf("%s: held are %v", steps[i], heldPorts(t, r))
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", steps[i], err)
				}
				if got := nodePortsIn(t, r, "web"); got != steps[i+1] {
					t.Errorf("%s: %s, want %s", steps[i], got, steps[i+1])
				}
				list, _ := r.Get(t.Context(), "services", "shop", "web")
				var svc corev1.Service
				if err := json.Unmarshal(list.Items[0], &svc); err != nil {
					t.Fatal(err)
				}
				want := []string{"30099 shop/other"}
				for port := range nodePortsOf(&svc.Spec) {
					want = append(want, fmt.Sprint(port, " shop/web"))
				}
				if slices.Sort(want); !slices.Equal(heldPorts(t, r), want) {
					t.Errorf("%s: held are %v, want %v", steps[i], heldPorts(t, r), want)
				}
				if got := summary(apply(t, r, string(list.Items[0]))); got != "shop/web unchanged" {
					t.Errorf("%s: what is shown, applied: %s", steps[i], got)
				}
			}
			if _, err := r.Delete(t.Context(), "services", "shop", "web", api.ManifestOptions{}); err == nil && !slices.Equal(heldPorts(t, r), []string{"30099 shop/other"}) {
				t.Errorf("not freed: %v", heldPorts(t, r))
			}
		})
	}
}

// Two services of one manifest cannot have one node port, and those that say none do not get
// the same; one that is deleted and created again gets its own back.
func TestNodePortsOfOneManifest(t *testing.T) {
	r, _ := fixture(t)
	both := portService("a", "type: NodePort, ports: [{port: 80, nodePort: 30080}]") + "---\n" + portService("b", "type: NodePort, ports: [{port: 80, nodePort: 30080}]")
	if _, err := r.Apply(t.Context(), []byte(both), api.ManifestOptions{}); err == nil || !strings.Contains(err.Error(), "nodePort 30080 belongs to service shop/a") {
		t.Error(err)
	}
	var many []string
	for i := range 200 {
		many = append(many, portService(fmt.Sprint("s", i), "type: NodePort, ports: [{port: 80}]"))
	}
	apply(t, r, strings.Join(many, "---\n"))
	was := heldPorts(t, r)
	if len(was) != 200 {
		t.Errorf("%d ports for 200 services", len(was))
	}
	if _, err := r.Delete(t.Context(), "services", "shop", "s7", api.ManifestOptions{}); err != nil || len(heldPorts(t, r)) != 199 {
		t.Error(err, len(heldPorts(t, r)))
	}
	apply(t, r, many[7])
	if now := heldPorts(t, r); !slices.Equal(was, now) {
		t.Error("created again, it has another port")
	}
}

// What another cluster printed is a manifest here: its node port gives way if it is taken.
func TestForeignNodePorts(t *testing.T) {
	r, _ := fixture(t)
	apply(t, r, portService("other", "type: NodePort, ports: [{port: 80, nodePort: 30080}]"))
	printed := strings.Replace(portService("web", "type: NodePort, ports: [{port: 80, nodePort: 30080}]"), "name: web,", "name: web, uid: u7,", 1)
	result := apply(t, r, printed)
	if got := nodePortsIn(t, r, "web"); got != "N1" || len(result.Warnings) != 1 {
		t.Errorf("%s, warnings %v", got, result.Warnings)
	}
	if got := summary(apply(t, r, strings.Replace(printed, "nodePort: 30080", "nodePort: 30081", 1))); got != "shop/web configured" || nodePortsIn(t, r, "web") != "30081" {
		t.Error(got, nodePortsIn(t, r, "web"))
	}
}

// A service that was stored before node ports were given out keeps what it asked for, unless
// somebody has that now.
func TestNodePortsFromBefore(t *testing.T) {
	r, _ := fixture(t)
	old := store.Put(wire.ObjectKey("services", "shop", "web"), []byte(`{"kind":"Service","apiVersion":"v1","metadata":{"name":"web","namespace":"shop","uid":"u1"},"spec":{"ports":[{"port":80,"protocol":"TCP","targetPort":80,"nodePort":30080}],"selector":{"app":"web"},"clusterIP":"10.101.0.7","clusterIPs":["10.101.0.7"],"type":"NodePort"},"status":{"loadBalancer":{}}}`))
	if err := store.Write(t.Context(), r.store, old, store.Put(wire.ServiceIPKey("10.101.0.7"), []byte("shop/web"))); err != nil {
		t.Fatal(err)
	}
	apply(t, r, portService("web", "type: NodePort, ports: [{port: 80}]"))
	if got := heldPorts(t, r); nodePortsIn(t, r, "web") != "30080" || !slices.Equal(got, []string{"30080 shop/web"}) {
		t.Error(nodePortsIn(t, r, "web"), got)
	}
	if err := store.Write(t.Context(), r.store, old, store.Put(wire.NodePortKey(30080), []byte("shop/other"))); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Delete(t.Context(), "services", "shop", "web", api.ManifestOptions{}); err != nil || len(heldPorts(t, r)) != 1 {
		t.Errorf("%v: another's port was freed", err)
	}
}
