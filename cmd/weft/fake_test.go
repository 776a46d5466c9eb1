package main

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/flow"
)

// fake is a cluster's API server with fixed state, except for its peers. It answers with
// the types of the real one.
type fake struct {
	*httptest.Server
	name  string
	id    uint32
	mesh  map[string]*fake
	peers map[string]api.PeerStatus
}

func newFake(name string, id uint32, mesh map[string]*fake) *fake {
	f := &fake{name: name, id: id, mesh: mesh, peers: map[string]api.PeerStatus{}}
	mesh[name] = f
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", f.answer(func(*http.Request) (any, error) { return f.status(), nil }))
	mux.HandleFunc("GET /v1/peers", f.answer(func(*http.Request) (any, error) {
		return api.PeerList{Cluster: name, Peers: f.status().Peers}, nil
	}))
	mux.HandleFunc("POST /v1/peers", f.answer(f.addPeer))
	mux.HandleFunc("POST /v1/peers/cilium", f.answer(f.addCilium))
	mux.HandleFunc("POST /v1/peers/invite", f.answer(f.invite))
	mux.HandleFunc("DELETE /v1/peers/{name}", f.answer(f.removePeer))
	mux.HandleFunc("POST /v1/peers/{name}/release", f.answer(f.release))
	mux.HandleFunc("POST /v1/peers/{name}/forget", f.answer(func(r *http.Request) (any, error) {
		return api.FormerPeer{Cluster: name, Name: r.PathValue("name"), PodCIDRs: []netip.Prefix{prefix("10.%d.0.0/16", 77)}}, nil
	}))
	mux.HandleFunc("GET /v1/nodes", f.answer(func(*http.Request) (any, error) {
		return api.NodeList{Cluster: name, Nodes: f.status().Nodes}, nil
	}))
	mux.HandleFunc("POST /v1/nodes", f.answer(f.addNode))
	mux.HandleFunc("DELETE /v1/nodes/{name}", f.answer(func(r *http.Request) (any, error) {
		if r.PathValue("name") == "east-1" && r.URL.Query().Get("force") != "true" {
			return nil, api.Conflict("stop its agent first, or repeat with --force", "the agent of node east-1 is running, and the 2 pods on it would be deleted with it")
		}
		return api.ApplyResult{Cluster: f.name, Objects: []api.AppliedObject{
			{Cluster: f.name, Kind: "Node", Name: r.PathValue("name"), Action: api.Deleted},
			{Cluster: f.name, Kind: "Pod", Namespace: "shop", Name: "web-1", Action: api.Deleted},
		}}, nil
	}))
	mux.HandleFunc("GET /v1/servers", f.answer(func(*http.Request) (any, error) {
		return api.ServerList{Cluster: name, Servers: f.servers(), Quorum: &api.Quorum{Members: len(f.servers()), Up: 1, Needed: len(f.servers())}}, nil
	}))
	mux.HandleFunc("POST /v1/servers", f.answer(func(r *http.Request) (any, error) {
		var request api.ServerRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			return nil, err
		}
		return api.ServerBundle{Kind: api.ServerBundleKind, Cluster: f.name, ClusterID: f.id, Name: request.Name, Address: request.Address.String() + ":2380", Token: "T", Expires: noon, EtcdEndpoints: []string{"https://172.16.1.1:2379"}, CA: "CA", CAKey: "KEY"}, nil
	}))
	change := func(action string) http.HandlerFunc {
		return f.answer(func(r *http.Request) (any, error) {
			if !strings.HasSuffix(r.PathValue("name"), ".253") {
				return nil, api.Conflict("start those that are down first", "without %s, none of 1 would answer, and 1 is needed", r.PathValue("name"))
			}
			return api.ServerChange{Cluster: f.name, Name: r.PathValue("name"), Action: action, Quorum: &api.Quorum{Members: 1, Up: 1, Needed: 1}}, nil
		})
	}
	mux.HandleFunc("DELETE /v1/servers/{name}", change(string(api.Deleted)))
	mux.HandleFunc("POST /v1/servers/{name}/replace", change("replaced"))
	mux.HandleFunc("POST /v1/rotate", f.answer(func(*http.Request) (any, error) { return api.RotateResult{Cluster: name, Epoch: 3}, nil }))
	mux.HandleFunc("POST /v1/release", f.answer(func(*http.Request) (any, error) {
		return api.ReleaseResult{Cluster: name, Generation: "g2", Nodes: []string{"east-1", "east-2"}}, nil
	}))
	mux.HandleFunc("GET /v1/identities", f.answer(func(*http.Request) (any, error) { return f.identities(), nil }))
	mux.HandleFunc("GET /v1/services", f.answer(func(*http.Request) (any, error) { return f.services(), nil }))
	mux.HandleFunc("POST /v1/apply", f.answer(f.apply(api.Configured)))
	mux.HandleFunc("POST /v1/delete", f.answer(f.apply(api.Deleted)))
	mux.HandleFunc("GET /v1/objects/{plural}", f.answer(f.objects))
	mux.HandleFunc("GET /v1/objects/{plural}/{namespace}/{name}", f.answer(f.object))
	mux.HandleFunc("DELETE /v1/objects/{plural}/{namespace}/{name}", f.answer(f.deleteObject))
	mux.HandleFunc("GET /v1/watch/{plural}", f.watch)
	mux.HandleFunc("GET /v1/observe", serveFlows(name))
	mux.HandleFunc("GET /v1/backup", f.backup)
	mux.HandleFunc("GET /v1/nodes/{node}/tables", f.answer(func(r *http.Request) (any, error) { return tables(name, r.PathValue("node")), nil }))
	mux.HandleFunc("GET /v1/nodes/{node}/trace", f.answer(f.trace))
	mux.HandleFunc("GET /v1/nodes/{node}/tables/{table}", f.answer(func(r *http.Request) (any, error) {
		return paths(name, r.PathValue("node"), r.PathValue("table"))
	}))
	f.Server = httptest.NewUnstartedServer(mux)
	f.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.StartTLS()
	return f
}

// servers are the API servers: one in east, and another that is missing in west.
func (f *fake) servers() []api.ServerStatus {
	url := func(a netip.Addr) string { return "https://" + netip.AddrPortFrom(a, api.ServerPort).String() }
	first, second := addr("172.16.%d.254", int(f.id)), addr("172.16.%d.253", int(f.id))
	all := []api.ServerStatus{{Cluster: f.name, Name: first.String(), ID: "a1", URL: url(first), State: api.ServerLeads, AgeSeconds: 180, Version: "v0.1.0", Answers: true, Store: api.StoreUp, StoreLeads: true, StoreAddress: first.String() + ":2380", StoreVersion: "3.7.3", StoreBytes: 4 << 20}}
	if f.name == "west" {
		all = append(all, api.ServerStatus{Cluster: f.name, Name: second.String(), ID: "b2", URL: url(second), State: api.ServerMissing, AgeSeconds: 7, Version: "v0.1.0", Store: api.StoreDown, StoreAddress: second.String() + ":2380"})
	}
	return all
}

func (f *fake) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}))
}

func (f *fake) answer(of func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := of(r)
		var refusal *api.Error
		if errors.As(err, &refusal) {
			w.WriteHeader(refusal.Status)
			v = refusal
		}
		_ = json.NewEncoder(w).Encode(v)
	}
}

// serveAgent serves the API of a node's agent on a socket.
func serveAgent(path string) (stop func(), err error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/observe", serveFlows("east"))
	plain := new(fake)
	mux.HandleFunc("GET /v1/tables", plain.answer(func(*http.Request) (any, error) { return tables("east", "east-1"), nil }))
	mux.HandleFunc("GET /v1/tables/{table}", plain.answer(func(r *http.Request) (any, error) { return paths("east", "east-1", r.PathValue("table")) }))
	mux.HandleFunc("GET /v1/status", plain.answer(func(*http.Request) (any, error) { return map[string]any{"node": "east-1", "cluster": "east"}, nil }))
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()
	return func() { _ = server.Close() }, nil
}

func asExit(err error, exit *interface{ ExitCode() int }) bool {
	var e *exec.ExitError
	if errors.As(err, &e) {
		*exit = e
		return true
	}
	return false
}

func (f *fake) status() api.Status {
	id := int(f.id)
	alive := true
	heard := noon.Add(-2 * time.Second)
	s := api.Status{
		Cluster: api.ClusterStatus{Name: f.name, ID: f.id, PodCIDRs: []netip.Prefix{prefix("10.%d.0.0/16", id)}, ServiceCIDR: prefix("10.%d.0.0/16", 100+id),
			MaxConnectedClusters: 255, Generation: "6f1c", Version: "v0.1.0", UptimeSeconds: 180, Store: "embedded", StoreVersion: "3.7.3",
			StoreBytes: 1258291, Revision: 431, Endpoints: 3, Identities: 2, Services: 1, Policies: 1},
		Servers: f.servers(),
		Nodes: []api.NodeStatus{
			{Cluster: f.name, Name: f.name + "-2", State: "ready", Addresses: []netip.Addr{addr("172.16.%d.2", id)}, Internals: []netip.Addr{addr("10.%d.2.1", id)},
				PodCIDRs: []netip.Prefix{prefix("10.%d.2.0/24", id)}, Endpoints: 1, Epoch: 1, Alive: &alive, LastSeen: heard, AgeSeconds: 2},
			{Cluster: f.name, Name: f.name + "-1", State: "ready", Addresses: []netip.Addr{addr("172.16.%d.1", id)}, Internals: []netip.Addr{addr("10.%d.1.1", id)},
				PodCIDRs: []netip.Prefix{prefix("10.%d.1.0/24", id)}, Endpoints: 2, Epoch: 1, Alive: &alive, LastSeen: heard, AgeSeconds: 1},
		},
	}
	for i := range s.Nodes {
		s.Nodes[i].Store = &api.NodeStore{Revision: 431 - int64(i), LagSeconds: s.Nodes[i].AgeSeconds}
	}
	if f.name == "west" {
		s.Nodes[0].State, s.Nodes[0].LastSeen, s.Nodes[0].AgeSeconds = "silent", noon.Add(-time.Hour), 3600
		s.Nodes[1].Problems = []api.NodeProblem{
			{Table: "services", Row: "west/shop/web", Rows: 2, Error: "table services is full at 3 rows; raise limits.services"},
			{Table: "ips", Row: "10.2.1.9", Rows: 1, Error: "not now"}, {Table: "policies", Rows: 1, Error: "table policy is full at 8 rows"}}
		s.Concerns = []api.Concern{
			{Object: "store", Reason: "DiskNearlyFull", Message: "the disk of the store is 91% full"},
			{Object: "node west-2", Node: "west-2", Reason: "AgentSilent", Message: "agent on west-2 has not answered for 60 min (its traffic continues)", Next: "start it"},
		}
		s.Settling = []api.Concern{{Object: "node west-1", Node: "west-1", Reason: "AgentStarting", Message: "agent on west-1 has been starting for 1 s", Next: "check its log"}}
		s.Peers = append(s.Peers, api.PeerStatus{Cluster: "west", Name: "north", ID: 3, PodCIDRs: []netip.Prefix{prefix("10.%d.0.0/16", 3)}, ServiceCIDR: prefix("10.%d.0.0/16", 103),
			Control:   api.ControlStatus{State: api.LinkDown, Since: heard, Error: "connection refused", LastHeard: noon.Add(-90 * time.Minute), AgeSeconds: 5400},
			Mirrors:   []api.MirrorStatus{{Resource: "nodes", Entries: 2, Synced: true}, {Resource: "ip", Entries: 40, Synced: true, Held: 38}},
			Refused:   []api.Refusal{{Cluster: "north", Resource: "ip", Reason: "outside of its pod CIDRs", Count: 4, Example: "10.1.1.5", Last: heard}},
			DeadNodes: []string{"north-2"}})
	}
	for _, p := range f.peers {
		s.Peers = append(s.Peers, p)
	}
	return s
}

func (f *fake) invite(r *http.Request) (any, error) {
	var request api.InviteRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return nil, api.Invalid("", "%v", err)
	}
	return api.Invite{Kind: api.InviteKind, For: request.Peer, Expires: noon.AddDate(1, 0, 0), Cluster: f.name, ID: f.id,
		PodCIDRs: []netip.Prefix{prefix("10.%d.0.0/16", int(f.id))}, ServiceCIDR: prefix("10.%d.0.0/16", 100+int(f.id)),
		MaxConnectedClusters: 255, Generation: "6f1c", EtcdEndpoints: []string{"https://172.16.1.1:2379"}, CA: "CA", Cert: "CERT", Key: "KEY"}, nil
}

func (f *fake) addPeer(r *http.Request) (any, error) {
	var in api.Invite
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return nil, api.Invalid("", "%v", err)
	}
	if f.name == "west" && f.mesh["east"].peers["west"].Name == "" {
		return nil, api.Conflict("remove it first with `weft peer remove east`", "cluster ID 1 is taken")
	}
	if in.For != f.name {
		return nil, api.Invalid("ask for an invite in the name of this cluster", "the invite is for %q, this is %q", in.For, f.name)
	}
	p := api.PeerStatus{Cluster: f.name, Name: in.Cluster, ID: in.ID, PodCIDRs: in.PodCIDRs, ServiceCIDR: in.ServiceCIDR,
		Control: api.ControlStatus{State: api.LinkUp, LastHeard: noon, AgeSeconds: 1}, Mirrors: []api.MirrorStatus{{Resource: "ip", Entries: 3, Synced: true}}}
	f.peers[in.Cluster] = p
	return p, nil
}

func (f *fake) addCilium(r *http.Request) (any, error) {
	var in api.CiliumPeer
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return nil, api.Invalid("", "%v", err)
	}
	if len(in.PodCIDRs) == 0 {
		return nil, api.Invalid("", "cluster %q at %s (%s) with %s, %s, %s cannot be added: name its pod CIDRs with --pod-cidr", in.Cluster, strings.Join(in.Endpoints, ","), in.ServerName, in.CA, in.Cert, in.Key)
	}
	p := api.PeerStatus{Cluster: f.name, Name: in.Cluster, ID: cmp.Or(in.ID, 7), Cilium: true, PodCIDRs: in.PodCIDRs, ServiceCIDR: in.ServiceCIDR, Control: api.ControlStatus{State: api.LinkUp, LastHeard: noon, AgeSeconds: 1}}
	f.peers[in.Cluster] = p
	return p, nil
}

func (f *fake) removePeer(r *http.Request) (any, error) {
	name := r.PathValue("name")
	if _, ok := f.peers[name]; !ok {
		return nil, api.NotFound("`weft peer list` shows the peers", "there is no peer %q", name)
	}
	delete(f.peers, name)
	return nil, nil
}

func (f *fake) release(r *http.Request) (any, error) {
	return api.PeerStatus{Cluster: f.name, Name: r.PathValue("name")}, nil
}

func (f *fake) addNode(r *http.Request) (any, error) {
	var n api.NodeRequest
	if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
		return nil, api.Invalid("", "%v", err)
	}
	return api.JoinBundle{Cluster: f.name, ClusterID: f.id, Node: n.Name, Addresses: n.Addresses, PodCIDRs: n.PodCIDRs, Key: "KEY"}, nil
}

func (f *fake) identities() api.IdentityList {
	return api.IdentityList{Cluster: f.name, Identities: []api.Identity{
		{Cluster: "west", ID: 131080, Labels: "k8s:app=web;k8s:io.kubernetes.pod.namespace=shop;"},
		{Cluster: "east", ID: 65540, Labels: "k8s:app=frontend;k8s:io.kubernetes.pod.namespace=shop;", Endpoints: 2},
	}}
}

func (f *fake) services() api.ServiceList {
	return api.ServiceList{Cluster: f.name, Services: []api.Service{
		{Cluster: f.name, Namespace: "shop", Name: "web", ClusterIP: "10.101.0.7", Ports: []string{"http 80/TCP"}, PortNames: []string{"http"}, Global: true, Shared: true, Affinity: "none",
			Algorithm: "maglev", TableSize: 509, ClusterWeights: map[string]uint16{"west": 1, "east": 3},
			Backends: []api.ServiceBackend{
				{Cluster: "west", Address: addr("10.2.1.%d", 9), Ready: true, Weight: 100}, {Cluster: "west", Address: addr("10.2.2.%d", 9), LeftOut: []api.LeftOut{{Reason: "not ready"}}},
				{Cluster: "east", Node: "east-1", Address: addr("10.1.1.%d", 9), Ready: true, Weight: 50}}},
		{Cluster: f.name, Namespace: "kube", Name: "dns", Ports: []string{"dns 53/UDP"}, Affinity: "none"},
	}}
}

func (f *fake) apply(action api.Action) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		if before, _, found := strings.Cut(string(text), "broken"); found {
			return nil, &api.Error{Status: 422, Message: "nothing was applied", Hint: "correct the manifest and apply it again",
				Problems: []api.Problem{{Document: 1 + strings.Count(before, "\n---\n"), Kind: "Pod", Namespace: "shop", Name: "broken", Message: "spec.containers: give at least one"}}}
		}
		result := api.ApplyResult{Cluster: f.name, DryRun: r.URL.Query().Get("dry-run") == "true"}
		var list struct {
			Items []metav1.PartialObjectMetadata
		}
		_ = json.Unmarshal(text, &list) // others are YAML
		for _, o := range list.Items {
			result.Objects = append(result.Objects, api.AppliedObject{Cluster: f.name, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Action: action})
		}
		for _, line := range strings.Split(string(text), "\n") {
			if name, ok := strings.CutPrefix(line, "  name: "); ok {
				result.Objects = append(result.Objects, api.AppliedObject{Cluster: f.name, Kind: "Pod", Namespace: cmp.Or(r.URL.Query().Get("namespace"), "shop"), Name: name, Action: action})
			}
		}
		if before, _, found := strings.Cut(string(text), "doubtful"); found && action == api.Configured {
			result.Warnings = []api.Problem{{Document: 1 + strings.Count(before, "\n---\n"), Kind: "Pod", Namespace: "shop", Name: "doubtful", Message: "spec.image: is not run here"}}
		}
		return result, nil
	}
}

// stored holds the objects of every fake cluster, by plural and name.
var stored = map[string]map[string]string{
	"pods": {
		"web-1":      `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-1","namespace":"shop","labels":{"app":"web"},"creationTimestamp":"2026-01-02T11:00:00Z"},"spec":{"nodeName":"east-1"}}`,
		"frontend-1": `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"frontend-1","namespace":"shop"},"spec":{"nodeName":"east-2"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}],"podIP":"10.1.2.5","podIPs":[{"ip":"10.1.2.5"}]}}`,
	},
	"namespaces": {"shop": `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","labels":{"team":"a"},"creationTimestamp":"2025-12-30T12:00:00Z"}}`},
	"services": {"web": `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","namespace":"shop","annotations":{"io.cilium/global-service":"True"}},
		"spec":{"clusterIP":"10.101.0.7","selector":{"app":"web"},"ports":[{"port":80},{"port":53,"protocol":"UDP"}]}}`},
	"endpointslices": {"web-x": `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"web-x","namespace":"shop","labels":{"kubernetes.io/service-name":"web"}},
		"endpoints":[{"addresses":["10.1.1.9"]},{"addresses":["10.1.2.9"]}],"ports":[{"port":80,"protocol":"TCP"}]}`},
	"ciliumnetworkpolicies": {"web": `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"web","namespace":"shop"},
		"spec":{"endpointSelector":{"matchLabels":{"app":"web"}},"ingress":[{"fromEndpoints":[{}]}],"egress":[]}}`},
	"networkpolicies": {"open": `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"open","namespace":"shop"},
		"spec":{"podSelector":{"matchLabels":{"app":"web"}},"ingress":[{}],"policyTypes":["Ingress","Egress"]}}`},
	"ciliumcidrgroups": {"partners": `{"apiVersion":"cilium.io/v2","kind":"CiliumCIDRGroup","metadata":{"name":"partners"},"spec":{"externalCIDRs":["203.0.113.0/24","198.51.100.0/24"]}}`},
	"ciliumclusterwidenetworkpolicies": {"lockdown": `{"apiVersion":"cilium.io/v2","kind":"CiliumClusterwideNetworkPolicy","metadata":{"name":"lockdown"},
		"spec":{"endpointSelector":{},"ingressDeny":[{"fromEntities":["world"]}]}}`},
}

func (f *fake) objects(r *http.Request) (any, error) {
	l := api.ObjectList{Cluster: f.name, Revision: 431, Items: []json.RawMessage{}}
	ns := r.URL.Query().Get("namespace")
	for _, text := range stored[r.PathValue("plural")] {
		if ns == "" || strings.Contains(text, fmt.Sprintf(`"namespace":%q`, ns)) {
			l.Items = append(l.Items, json.RawMessage(text))
		}
	}
	return l, nil
}

func (f *fake) object(r *http.Request) (any, error) {
	text, ok := stored[r.PathValue("plural")][r.PathValue("name")]
	if r.PathValue("plural") == "services" && r.PathValue("name") == "headless" { // in no listing
		text, ok = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"headless","namespace":"shop"},"spec":{"clusterIP":"None","clusterIPs":["None"]}}`, true
	}
	if ns := r.PathValue("namespace"); !ok || ns != "_" && ns != "shop" {
		return nil, api.NotFound(fmt.Sprintf("`weft get %s` lists them", r.PathValue("plural")), "there is no %s %s/%s in cluster %s", r.PathValue("plural"), r.PathValue("namespace"), r.PathValue("name"), f.name)
	}
	return api.ObjectList{Cluster: f.name, Items: []json.RawMessage{json.RawMessage(text)}}, nil
}

func (f *fake) deleteObject(r *http.Request) (any, error) {
	if _, err := f.object(r); err != nil {
		return nil, err
	}
	return api.ApplyResult{Cluster: f.name, Objects: []api.AppliedObject{
		{Cluster: f.name, Kind: "Pod", Namespace: r.PathValue("namespace"), Name: r.PathValue("name"), Action: api.Deleted}}}, nil
}

func (f *fake) watch(w http.ResponseWriter, r *http.Request) {
	enc := json.NewEncoder(w)
	web := json.RawMessage(stored["pods"]["web-1"])
	for _, ev := range []api.WatchEvent{
		{Cluster: f.name, Type: "put", Kind: "Pod", Namespace: "shop", Name: "web-1", Revision: 1, Object: web},
		{Cluster: f.name, Type: "synced", Revision: 1},
		{Cluster: f.name, Type: "delete", Kind: "Pod", Namespace: "shop", Name: "web-1", Revision: 2},
	} {
		_ = enc.Encode(ev)
	}
}

// serveFlows serves two flows; the older one in west has a clock behind east's. The agent
// of west's second node is dead.
func serveFlows(cluster string) http.HandlerFunc {
	ring := flow.NewRing(8)
	denied := flow.Flow{Time: noon.Add(-time.Minute), Verdict: flow.Dropped, Reason: "policy-denied", DefaultDeny: true, Direction: flow.Ingress, Protocol: "TCP",
		Policies:    []flow.Policy{{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "web"}},
		Source:      flow.Endpoint{Cluster: "east", Namespace: "shop", Pod: "intruder", Identity: 65541, Address: addr("10.1.1.%d", 6), Port: 4000},
		Destination: flow.Endpoint{Cluster: "west", Namespace: "shop", Pod: "web-2", Identity: 131080, Address: addr("10.2.1.%d", 9), Port: 80},
		Node:        cluster + "/" + cluster + "-1", Summary: "TCP Flags: SYN"}
	if cluster == "west" {
		denied.Time = denied.Time.Add(-time.Second)
	}
	ring.Add(denied)
	allowed := denied
	allowed.Time, allowed.Verdict, allowed.Reason, allowed.DefaultDeny, allowed.Policies = denied.Time.Add(30*time.Second), flow.Forwarded, "", false, nil
	allowed.Source.Pod = "frontend-1"
	ring.Missed(5)
	ring.Add(allowed)
	return func(w http.ResponseWriter, r *http.Request) {
		request, err := flow.ParseRequest(r.URL.Query())
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(api.Error{Message: err.Error()})
			return
		}
		if !request.Follow && cluster == "west" {
			w.Header().Set(api.SilentNodes, "west-2")
		}
		for _, f := range ring.Last(request.Last, request.Match) {
			_ = json.NewEncoder(w).Encode(f)
		}
	}
}

func tables(cluster, node string) api.TableList {
	return api.TableList{Cluster: cluster, Node: node, Tables: []api.TableSummary{{Name: "paths", Rows: 3}, {Name: "endpoints", Rows: 2, Pending: 1, Errors: 1}}}
}

func paths(cluster, node, name string) (any, error) {
	if name != "paths" {
		return nil, api.NotFound("`weft debug tables` lists them", "node %s has no table %q", node, name)
	}
	return api.Table{Cluster: cluster, Node: node, Name: name, Columns: []string{"Cluster", "Node", "Alive"},
		Rows: [][]string{{"west", "west-1", "yes"}, {"west", "west-2", "no"}}}, nil
}

// trace lets a pod of east reach west's first node, whose policy lets in only port 80. Nothing is
// known of west's second node, which port 443 is on, or where port 444 is. West's first node sends
// port 445 on and on, in the name of another cluster.
func (f *fake) trace(r *http.Request) (any, error) {
	q, err := api.ParseTraceQuestion(r.URL.Query())
	if err != nil {
		return nil, api.Invalid("", "%v", err)
	}
	at := f.name + "/" + r.PathValue("node")
	switch {
	case f.name == "east":
		next := &api.TraceNext{Cluster: "west", Node: "west-1", From: q.From, To: netip.AddrPortFrom(addr("10.%d.1.9", 2), q.To.Port()), Arrives: api.ArrivesByTunnel}
		switch q.To.Port() {
		case 443:
			next.Node = "west-2"
		case 444:
			return api.Trace{End: api.EndUnknown, Steps: []api.TraceStep{{At: at, Hook: "to_tunnel", LookUp: "tunnel", Found: "the agent does not know yet which node that is"}}}, nil
		}
		return api.Trace{End: "tunnelled", Next: next, Steps: []api.TraceStep{
			{At: at, Hook: "from_pod", LookUp: "source", Found: q.From.String()}, {At: at, Hook: "to_tunnel", LookUp: "tunnel", Found: "tunnel 1 to west/" + next.Node}}}, nil
	case r.PathValue("node") == "west-2":
		return nil, api.Refuse(http.StatusBadGateway, "", "the agent of node west-2 does not answer")
	case q.To.Port() == 445:
		return api.Trace{End: api.EndTunnelled, Next: &api.TraceNext{Cluster: "west", Node: "west-1", From: q.From, To: q.To, Arrives: api.ArrivesByTunnel},
			Steps: []api.TraceStep{{At: "north/n9", Hook: "from_tunnel", LookUp: "tunnel", Found: "tunnel 0 to west/west-1"}}}, nil
	case q.To.Port() == 80 && q.Protocol == 6, q.Protocol == 1:
		return api.Trace{End: "delivered", Steps: []api.TraceStep{{At: at, Hook: "from_tunnel", LookUp: "pod", Found: "delivered"},
			{At: at, Hook: "from_tunnel", LookUp: "report", Found: "dropped 3s ago: held", Reason: "held"}}}, nil
	}
	by := []string{"shop/web (CiliumNetworkPolicy)"}
	return api.Trace{End: "policy-denied", Dropped: true, Steps: []api.TraceStep{
		{At: at, Hook: "from_tunnel", LookUp: "policy", Found: "ingress: not allowed by " + by[0], Reason: "policy-denied", Policies: by, Advice: "let a rule allow it"}}}, nil
}

func addr(format string, n int) netip.Addr     { return netip.MustParseAddr(fmt.Sprintf(format, n)) }
func prefix(format string, n int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf(format, n)) }
