package registry

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// externalOf shows a service's addresses outside of the mesh as nodes read them, and as Proxy
// those that they leave to the load balancer.
func externalOf(t *testing.T, raw []byte) string {
	t.Helper()
	var svc corev1.Service
	if err := json.Unmarshal(raw, &svc); err != nil {
		t.Fatal(err)
	}
	read, err := service.FromKubernetes(&svc)
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprint(read.External, read.Balanced)
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IP == "" {
			out += " " + in.Hostname
		} else if *in.IPMode == corev1.LoadBalancerIPModeProxy {
			out += " Proxy " + in.IP
		}
	}
	if read.Ranged {
		out += fmt.Sprint(" for ", read.Ranges)
	}
	return out
}

// What services say about addresses outside of the mesh, one manifest after the other: a result
// that begins with ! is a refusal, and after ? comes what is warned of.
func TestExternalAddresses(t *testing.T) {
	const (
		lb    = "type: LoadBalancer, ports: [{port: 80}]"
		ip    = lb + ", loadBalancerIP: 192.0.2.8"
		plain = "ports: [{port: 80}]"
	)
	with := func(spec, ingress string) string { return spec + "|" + ingress }
	for name, steps := range map[string][]string{
		"none":                      {plain, "[] []"},
		"external IPs":              {plain + `, externalIPs: [203.0.113.9, 192.0.2.1]`, "[203.0.113.9 192.0.2.1] []", plain, "[] []"},
		"with a type":               {"type: NodePort, ports: [{port: 80}], externalIPs: [203.0.113.9]", "[203.0.113.9] []"},
		"traffic policy":            {plain + ", externalIPs: [203.0.113.9], externalTrafficPolicy: Local", "[203.0.113.9] []"},
		"traffic policy of nothing": {plain + ", externalTrafficPolicy: Local", "[] [] ?spec.externalTrafficPolicy has no effect"},
		"not an address":            {plain + ", externalIPs: [web]", `!spec.externalIPs[0] "web" is not an IP address`},
		"not a machine's":           {plain + ", externalIPs: [127.0.0.1]", "!spec.externalIPs[0]: 127.0.0.1 is a loopback address"},
		"twice":                     {plain + ", externalIPs: [192.0.2.1, 192.0.2.1]", "!spec.externalIPs names 192.0.2.1 twice"},
		"of no family":              {plain + `, externalIPs: ["2001:db8::1"]`, "!spec.externalIPs[0] 2001:db8::1: the service has no IPv6"},
		"headless":                  {plain + ", clusterIP: None, externalIPs: [192.0.2.1]", "!spec.clusterIP is None, and external IPs need"},
		"in the service CIDR":       {plain + ", externalIPs: [10.101.0.9]", "!spec.externalIPs[0] 10.101.0.9 is in the service CIDR 10.101.0.0/16"},
		"in a pod CIDR":             {plain + ", externalIPs: [10.1.7.9]", "!spec.externalIPs[0] 10.1.7.9 is in the pod CIDR 10.1.7.0/24 of node n7"},

		"nobody assigns":           {lb, "[] [] ?spec.type is LoadBalancer and nobody assigns addresses"},
		"asked for":                {ip, "[] [192.0.2.8]", strings.Replace(ip, ".8", ".9", 1), "[] [192.0.2.9]", lb, "[] [] ?nobody assigns"},
		"asked for of another":     {ip + ", loadBalancerClass: example.com/lb", "[] [] ?spec.loadBalancerIP is for the controller of spec.loadBalancerClass example.com/lb"},
		"which answers":            {with(ip+", loadBalancerClass: example.com/lb", "{ip: 192.0.2.8}"), "[] [192.0.2.8]"},
		"class of no balancer":     {plain + ", loadBalancerClass: example.com/lb", "!spec.loadBalancerClass is only for services of type LoadBalancer"},
		"asked for by no balancer": {plain + ", loadBalancerIP: 192.0.2.8", "[] [] ?spec.loadBalancerIP has no effect"},
		"not an address asked for": {lb + ", loadBalancerIP: web", `!spec.loadBalancerIP "web" is not an IP address`},
		"told":                     {with(lb, "{ip: 192.0.2.8}, {hostname: lb.example.com}"), "[] [192.0.2.8] lb.example.com", lb, "[] [] ?nobody assigns"},
		"told by mode":             {with(lb, "{ip: 192.0.2.8, ipMode: Proxy}, {ip: 192.0.2.9, ipMode: VIP}"), "[] [192.0.2.9] Proxy 192.0.2.8"},
		"told and asked for":       {with(ip, "{ip: 192.0.2.8, ipMode: Proxy}, {ip: 192.0.2.9}"), "[] [] Proxy 192.0.2.8 ?status.loadBalancer.ingress names 192.0.2.9, and spec.loadBalancerIP is 192.0.2.8"},
		"no such mode":             {with(lb, "{ip: 192.0.2.8, ipMode: DSR}"), "!status.loadBalancer.ingress[0].ipMode DSR does not exist"},
		"mode of a name":           {with(lb, "{hostname: lb.example.com, ipMode: VIP}"), "!status.loadBalancer.ingress[0].ipMode is only for an ip"},
		"nothing told":             {with(lb, "{}"), "!status.loadBalancer.ingress[0] has no ip"},
		"told twice":               {with(lb, "{ip: 192.0.2.8}, {ip: 192.0.2.8}"), "!status.loadBalancer.ingress[1]: 192.0.2.8 is there twice"},
		"told of no balancer":      {with(plain, "{ip: 192.0.2.8}"), "!status.loadBalancer.ingress names addresses, and the service's type is ClusterIP"},
		"told of no family":        {with(lb, `{ip: "2001:db8::8"}`), "!load balancer address 2001:db8::8: the service has no IPv6"},
		"inside of the mesh":       {lb + ", loadBalancerIP: 10.101.0.9", "!load balancer address 10.101.0.9 is in the service CIDR"},

		"source ranges":                {ip + ", loadBalancerSourceRanges: [198.51.100.7/24, ' 192.0.2.0/28']", "[] [192.0.2.8] for [198.51.100.0/24 192.0.2.0/28]"},
		"not a range":                  {ip + ", loadBalancerSourceRanges: [198.51.100.7]", `!spec.loadBalancerSourceRanges[0] "198.51.100.7" is not a prefix`},
		"ranges of another family":     {ip + ", loadBalancerSourceRanges: ['2001:db8::/32']", "[] [192.0.2.8] for [2001:db8::/32] ?spec.loadBalancerSourceRanges names no prefix of IPv4, so nobody reaches 192.0.2.8"},
		"source ranges of a plain one": {plain + ", loadBalancerSourceRanges: [198.51.100.0/24]", "!spec.loadBalancerSourceRanges is only for services of type LoadBalancer"},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := fixture(t)
			reg := &wire.Registration{Name: "n7", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.7.0/24")}}
			if err := store.Write(t.Context(), s, store.Put(wire.RegistrationKey("n7"), wire.Marshal(reg))); err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(steps); i += 2 {
				spec, ingress, told := strings.Cut(steps[i], "|")
				text := portService("web", spec)
				if told {
					text += "status: {loadBalancer: {ingress: [" + ingress + "]}}\n"
				}
				result, err := r.Apply(t.Context(), []byte(text), api.ManifestOptions{})
				if want, refused := strings.CutPrefix(steps[i+1], "!"); refused {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%s: %v, want a refusal with %q", steps[i], err, want)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", steps[i], err)
				}
				want, warned, warns := strings.Cut(steps[i+1], " ?")
				if warns != (len(result.Warnings) == 1) || warns && !strings.Contains(result.Warnings[0].Message, warned) {
					t.Errorf("%s: warned %v, want %q", steps[i], result.Warnings, warned)
				}
				list, err := r.Get(t.Context(), "services", "shop", "web")
				if err != nil {
					t.Fatal(err)
				}
				if got := externalOf(t, list.Items[0]); got != want {
					t.Errorf("%s: %s, want %s", steps[i], got, want)
				}
				if got := summary(apply(t, r, string(list.Items[0]))); got != "shop/web unchanged" {
					t.Errorf("%s: what is shown, applied: %s", steps[i], got)
				}
			}
		})
	}
}

// What a load balancer of another cluster was given means nothing here.
func TestForeignLoadBalancers(t *testing.T) {
	r, _ := fixture(t)
	printed := strings.Replace(portService("web", "type: LoadBalancer, ports: [{port: 80}]"), "name: web,", "name: web, uid: u7,", 1) + "status: {loadBalancer: {ingress: [{ip: 192.0.2.8}]}}\n"
	for range 2 {
		result := apply(t, r, printed)
		list, _ := r.Get(t.Context(), "services", "shop", "web")
		if got := externalOf(t, list.Items[0]); got != "[] []" || len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0].Message, "status.loadBalancer is another cluster's") {
			t.Errorf("%s, warnings %v", got, result.Warnings)
		}
	}
}

// Host ports that cannot work are refused.
func TestHostPorts(t *testing.T) {
	for name, c := range map[string]struct{ ports, want string }{
		"usable":              {"{containerPort: 80, hostPort: 8080}, {containerPort: 80, hostPort: 8080, protocol: UDP}, {containerPort: 81, hostPort: 8081, hostIP: 192.0.2.1}, {containerPort: 81, hostPort: 8081, hostIP: '::'}", ""},
		"of services":         {"{containerPort: 80, hostPort: 30080}", "ports[0].hostPort is 30080, and ports 30000-32767 are for services"},
		"no port":             {"{containerPort: 80, hostPort: 70000}", "ports[0].hostPort is 70000; choose one from 1 to 65535"},
		"SCTP":                {"{containerPort: 80, hostPort: 8080, protocol: SCTP}", "ports[0].protocol is SCTP, which host ports do not carry"},
		"at loopback":         {"{containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1}", ""},
		"at no address":       {"{containerPort: 80, hostPort: 8080, hostIP: n1}", `ports[0].hostIP "n1" is not an address`},
		"twice":               {"{containerPort: 80, hostPort: 8080}, {containerPort: 81, hostPort: 8080}", "hostPort 8080/TCP is there twice"},
		"twice at an address": {"{containerPort: 80, hostPort: 8080, hostIP: 192.0.2.1}, {containerPort: 81, hostPort: 8080, hostIP: 192.0.2.1}", "hostPort 8080/TCP at 192.0.2.1 is there twice"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fixture(t)
			text := "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop}\nspec: {nodeName: n1, containers: [{name: web, ports: [" + c.ports + "]}]}\n"
			_, err := r.Apply(t.Context(), []byte(text), api.ManifestOptions{})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
