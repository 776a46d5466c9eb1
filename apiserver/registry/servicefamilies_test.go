package registry

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// dualFixture is a registry of a cluster whose services may have both IP families.
func dualFixture(t *testing.T) *Registry {
	t.Helper()
	r, _ := fixture(t)
	r.conf.IPv6ServiceCIDR = netip.MustParsePrefix("fd00:10:101::/112")
	return r
}

// familyService is a service with some more of a spec.
func familyService(spec string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, ports: [{port: 80}], " + spec + "}\n"
}

// standing shows a service's families: addresses outside of those that tests ask for as v4
// and v6.
func standing(t *testing.T, r *Registry) string {
	t.Helper()
	list, err := r.Get(t.Context(), "services", "shop", "web")
	if err != nil {
		return err.Error()
	}
	var svc corev1.Service
	if err := json.Unmarshal(list.Items[0], &svc); err != nil {
		t.Fatal(err)
	}
	if svc.Spec.ClusterIP != svc.Spec.ClusterIPs[0] {
		t.Errorf("clusterIP is %s, clusterIPs %v", svc.Spec.ClusterIP, svc.Spec.ClusterIPs)
	}
	var ips, families []string
	for i, text := range svc.Spec.ClusterIPs {
		ip, err := netip.ParseAddr(text)
		switch {
		case err != nil || strings.HasSuffix(text, "7"): // asked for
		case r.conf.ServiceCIDR.Contains(ip):
			text = "v4"
		case r.conf.IPv6ServiceCIDR.Contains(ip):
			text = "v6"
		}
		ips = append(ips, text)
		if err == nil && (svc.Spec.IPFamilies[i] == corev1.IPv4Protocol) != ip.Is4() {
			t.Errorf("%s is of %s", ip, svc.Spec.IPFamilies[i])
		}
	}
	for _, f := range svc.Spec.IPFamilies {
		families = append(families, string(f))
	}
	return strings.Join(ips, ",") + " " + strings.Join(families, ",") + " " + string(*svc.Spec.IPFamilyPolicy)
}

// held are the addresses that the store says are in use.
func held(t *testing.T, r *Registry) (out []string) {
	t.Helper()
	kvs, _, err := r.store.List(t.Context(), wire.ServiceIPsPrefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range kvs {
		out = append(out, kv.Key[len(wire.ServiceIPsPrefix):])
	}
	return out
}

// A service's IP families are what Kubernetes makes of the same manifests, one after the other.
// A result that begins with ! is a refusal, after which all is as before.
func TestServiceFamilies(t *testing.T) {
	const (
		prefer, require, single = "ipFamilyPolicy: PreferDualStack", "ipFamilyPolicy: RequireDualStack", "ipFamilyPolicy: SingleStack"
		one, both               = "v4 IPv4 SingleStack", "v4,v6 IPv4,IPv6 PreferDualStack"
	)
	for name, steps := range map[string][]string{
		"nothing said":             {"", one, "", one},
		"IPv6 alone":               {"ipFamilies: [IPv6]", "v6 IPv6 SingleStack", "", "v6 IPv6 SingleStack"},
		"by an IPv6 address":       {`clusterIP: "fd00:10:101::7"`, "fd00:10:101::7 IPv6 SingleStack"},
		"in another spelling":      {`clusterIP: "FD00:10:101:0::7"`, "fd00:10:101::7 IPv6 SingleStack"},
		"preferred":                {prefer, both, prefer, both},
		"required":                 {require, "v4,v6 IPv4,IPv6 RequireDualStack"},
		"IPv6 first":               {require + ", ipFamilies: [IPv6]", "v6,v4 IPv6,IPv4 RequireDualStack"},
		"IPv6 first, both named":   {prefer + ", ipFamilies: [IPv6, IPv4]", "v6,v4 IPv6,IPv4 PreferDualStack"},
		"two addresses":            {prefer + `, clusterIPs: [10.101.0.7, "fd00:10:101::7"]`, "10.101.0.7,fd00:10:101::7 IPv4,IPv6 PreferDualStack"},
		"two addresses, IPv6 main": {prefer + `, clusterIPs: ["fd00:10:101::7", 10.101.0.7]`, "fd00:10:101::7,10.101.0.7 IPv6,IPv4 PreferDualStack"},
		"one address, both wanted": {prefer + ", clusterIP: 10.101.0.7", "10.101.0.7,v6 IPv4,IPv6 PreferDualStack"},
		"both without a policy":    {"ipFamilies: [IPv4, IPv6]", "!spec.ipFamilies has two, and the service gets one; write spec.ipFamilyPolicy PreferDualStack"},
		"two without a policy":     {`clusterIPs: [10.101.0.7, "fd00:10:101::7"]`, "!and the service has one IP family; write spec.ipFamilyPolicy"},
		"outside":                  {`clusterIP: "fd00:10:102::7"`, "!spec.clusterIP fd00:10:102::7 is outside of the service CIDR fd00:10:101::/112"},
		"the router's":             {`clusterIP: "fd00:10:101::"`, "!is outside of the service CIDR"},

		"comes":                      {"", one, prefer, both},
		"comes, asked for":           {"", one, prefer + `, clusterIPs: [X, "fd00:10:101::7"]`, "v4,fd00:10:101::7 IPv4,IPv6 PreferDualStack"},
		"comes, named":               {"", one, require + ", ipFamilies: [IPv4, IPv6]", "v4,v6 IPv4,IPv6 RequireDualStack"},
		"IPv4 comes":                 {"ipFamilies: [IPv6]", "v6 IPv6 SingleStack", require, "v6,v4 IPv6,IPv4 RequireDualStack"},
		"goes":                       {prefer, both, single, one, prefer, both},
		"goes, named":                {prefer, both, single + ", ipFamilies: [IPv4]", one},
		"goes, by addresses":         {prefer, both, single + ", clusterIPs: [X]", one},
		"nothing said keeps both":    {prefer, both, "", both, "clusterIP: X", both},
		"reduced without the policy": {prefer, both, "ipFamilies: [IPv4]", "!spec.ipFamilyPolicy is PreferDualStack, and the service has both IP families; write SingleStack"},
		"addresses reduced so":       {require, "v4,v6 IPv4,IPv6 RequireDualStack", "clusterIPs: [X]", "!write SingleStack to release the second"},
		"main family stays":          {"", one, "ipFamilies: [IPv6]", "!spec.ipFamilies[0] cannot change from IPv4 to IPv6; delete the service first"},
		"and is not turned":          {prefer, both, prefer + ", ipFamilies: [IPv6, IPv4]", "!spec.ipFamilies[0] cannot change"},
		"main address stays":         {"", one, "clusterIP: 10.101.0.7", "!cannot change from", "clusterIP: None", "!cannot change from"},
		"second address stays":       {prefer, both, prefer + `, clusterIPs: [X, "fd00:10:101::7"]`, "!spec.clusterIPs[1] cannot change from"},

		"headless":                {"clusterIP: None", "None IPv4 SingleStack"},
		"headless, both":          {"clusterIP: None, " + prefer, "None IPv4,IPv6 PreferDualStack", "clusterIP: None, " + single, "None IPv4 SingleStack"},
		"headless, IPv6":          {"clusterIP: None, ipFamilies: [IPv6]", "None IPv6 SingleStack"},
		"headless stays":          {"clusterIP: None", "None IPv4 SingleStack", "", "None IPv4 SingleStack", "clusterIP: 10.101.0.7", "!cannot change from None"},
		"headless selects nobody": {"clusterIP: None, selector: null", "None IPv4,IPv6 RequireDualStack"},
		"headless and not":        {`clusterIPs: [None, "fd00:10:101::7"]`, `!spec.clusterIP "None" is not an IP address`},
	} {
		t.Run(name, func(t *testing.T) {
			r := dualFixture(t)
			for i := 0; i < len(steps); i += 2 {
				text := familyService(steps[i])
				if strings.Contains(text, "selector: null") {
					text = strings.Replace(text, "selector: {app: web}, ", "", 1)
				}
				if ips := held(t, r); len(ips) > 0 {
					text = strings.ReplaceAll(text, "X", ips[0])
				}
				before := r.dump(t)
				_, err := r.Apply(t.Context(), []byte(text), api.ManifestOptions{})
				if want, refused := strings.CutPrefix(steps[i+1], "!"); refused {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%s: %v, want a refusal with %q", steps[i], err, want)
					}
					if !slices.Equal(before, r.dump(t)) {
						t.Errorf("%s: something was altered", steps[i])
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", steps[i], err)
				}
				if got := standing(t, r); got != steps[i+1] {
					t.Errorf("%s: %s, want %s", steps[i], got, steps[i+1])
				}
				list, _ := r.Get(t.Context(), "services", "shop", "web")
				var svc corev1.Service
				if err := json.Unmarshal(list.Items[0], &svc); err != nil {
					t.Fatal(err)
				}
				if want := slices.Sorted(slices.Values(allocated(&svc))); !slices.Equal(held(t, r), want) {
					t.Errorf("%s: held are %v, want %v", steps[i], held(t, r), want)
				}
				if got := summary(apply(t, r, string(list.Items[0]))); got != "shop/web unchanged" {
					t.Errorf("%s: what is shown, applied: %s", steps[i], got)
				}
			}
			if _, err := r.Delete(t.Context(), "services", "shop", "web", api.ManifestOptions{}); err == nil && len(held(t, r)) > 0 {
				t.Errorf("not freed: %v", held(t, r))
			}
		})
	}
}

// dump is what the registry's store holds of services.
func (r *Registry) dump(t *testing.T) (out []string) {
	t.Helper()
	for _, prefix := range []string{wire.ObjectsPrefix, wire.ServiceIPsPrefix} {
		kvs, _, err := r.store.List(t.Context(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range kvs {
			out = append(out, kv.Key+"="+string(kv.Value))
		}
	}
	return out
}

// A cluster without IPv6 service addresses gives one that prefers both what it has, and says
// nothing. Once it has them, the service stays as it is until its manifest says more.
func TestPreferringBothFamiliesIsNoDemand(t *testing.T) {
	r := dualFixture(t)
	cidr := r.conf.IPv6ServiceCIDR
	r.conf.IPv6ServiceCIDR = netip.Prefix{}
	result := apply(t, r, familyService("ipFamilyPolicy: PreferDualStack"))
	if got := standing(t, r); got != "v4 IPv4 PreferDualStack" || len(result.Warnings) > 0 {
		t.Errorf("%s, warnings %v", got, result.Warnings)
	}
	r.conf.IPv6ServiceCIDR = cidr
	if got := summary(apply(t, r, familyService("ipFamilyPolicy: PreferDualStack"))); got != "shop/web unchanged" {
		t.Error("again:", got)
	}
	apply(t, r, familyService("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv6]"))
	if got := standing(t, r); got != "v4,v6 IPv4,IPv6 PreferDualStack" {
		t.Error("named:", got)
	}
}

// Services that were stored before there were families keep their address, and take part in
// all that there is now.
func TestServicesFromBeforeFamilies(t *testing.T) {
	for name, c := range map[string]struct{ spec, says, want string }{
		"plain":        {`"clusterIP":"10.101.0.7","clusterIPs":["10.101.0.7"]`, "", "10.101.0.7 IPv4 SingleStack"},
		"one address":  {`"clusterIP":"10.101.0.7"`, "ipFamilyPolicy: PreferDualStack", "10.101.0.7,v6 IPv4,IPv6 PreferDualStack"},
		"said in vain": {`"clusterIP":"10.101.0.7","clusterIPs":["10.101.0.7"],"ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"RequireDualStack"`, "", "10.101.0.7 IPv4 SingleStack"},
		"said again":   {`"clusterIP":"10.101.0.7","clusterIPs":["10.101.0.7"],"ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"RequireDualStack"`, "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]", "10.101.0.7,v6 IPv4,IPv6 RequireDualStack"},
		"headless":     {`"clusterIP":"None","clusterIPs":["None"]`, "", "None IPv4 SingleStack"},
	} {
		t.Run(name, func(t *testing.T) {
			r := dualFixture(t)
			ops := []store.Op{store.Put(wire.ObjectKey("services", "shop", "web"), fmt.Appendf(nil,
				`{"kind":"Service","apiVersion":"v1","metadata":{"name":"web","namespace":"shop","uid":"u1"},"spec":{"ports":[{"port":80,"protocol":"TCP","targetPort":80}],"selector":{"app":"web"},%s,"type":"ClusterIP"},"status":{"loadBalancer":{}}}`, c.spec))}
			if !strings.Contains(c.spec, "None") {
				ops = append(ops, store.Put(wire.ServiceIPKey("10.101.0.7"), []byte("shop/web")))
			}
			if err := store.Write(t.Context(), r.store, ops...); err != nil {
				t.Fatal(err)
			}
			apply(t, r, familyService(c.says))
			if got := standing(t, r); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if _, err := r.Delete(t.Context(), "services", "shop", "web", api.ManifestOptions{}); err != nil || len(held(t, r)) > 0 {
				t.Errorf("%v, not freed: %v", err, held(t, r))
			}
		})
	}
}

// What a cluster with other CIDRs or families printed is a manifest here.
func TestForeignFamilies(t *testing.T) {
	printed := func(spec string) string {
		return strings.Replace(familyService(spec), "name: web,", "name: web, uid: u7,", 1)
	}
	const dual = `clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, "fd00:96::7"], ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack`
	for name, c := range map[string]struct {
		single     bool
		spec, want string
		warnings   int
	}{
		"both":               {false, dual, "v4,v6 IPv4,IPv6 RequireDualStack", 1},
		"both, one here":     {true, dual, "v4 IPv4 PreferDualStack", 2},
		"second foreign":     {false, `clusterIP: 10.101.0.7, clusterIPs: [10.101.0.7, "fd00:96::7"], ipFamilies: [IPv4, IPv6], ipFamilyPolicy: PreferDualStack`, "10.101.0.7,v6 IPv4,IPv6 PreferDualStack", 1},
		"IPv6 first, one":    {true, `clusterIP: "fd00:96::7", clusterIPs: ["fd00:96::7", 10.96.0.7], ipFamilies: [IPv6, IPv4], ipFamilyPolicy: PreferDualStack`, "v4 IPv4 PreferDualStack", 2},
		"IPv4 of one family": {false, "clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack", "v4 IPv4 SingleStack", 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := dualFixture(t)
			if c.single {
				r.conf.IPv6ServiceCIDR = netip.Prefix{}
			}
			for _, want := range []string{"created", "unchanged"} {
				result := apply(t, r, printed(c.spec))
				if got := summary(result); got != "shop/web "+want {
					t.Errorf("%s, want it %s", got, want)
				}
				if got := standing(t, r); got != c.want || len(result.Warnings) != c.warnings {
					t.Errorf("%s, want %s; warnings %v", got, c.want, result.Warnings)
				}
			}
		})
	}
}

// In a cluster of IPv6 alone, that is what services have.
func TestServicesOfAClusterOfIPv6Alone(t *testing.T) {
	for name, c := range map[string]struct{ spec, want string }{
		"nothing said": {"", "v4 IPv6 SingleStack"}, // v4 stands for the main CIDR
		"named":        {"ipFamilies: [IPv6]", "v4 IPv6 SingleStack"},
		"by address":   {`clusterIP: "fd00:10:101::7"`, "fd00:10:101::7 IPv6 SingleStack"},
		"preferred":    {"ipFamilyPolicy: PreferDualStack", "v4 IPv6 PreferDualStack"},
		"headless":     {"clusterIP: None", "None IPv6 SingleStack"},
		"IPv4":         {"ipFamilies: [IPv4]", "!spec.ipFamilies[0] is IPv4; remove it: cluster east has no service addresses of IPv4, only of IPv6"},
		"by IPv4":      {"clusterIP: 10.101.0.7", "!remove it: cluster east has no service addresses of IPv4, only of IPv6"},
		"required":     {"ipFamilyPolicy: RequireDualStack", "!has no service addresses of IPv4, only of IPv6"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fixture(t)
			r.conf.ServiceCIDR = netip.MustParsePrefix("fd00:10:101::/112")
			_, err := r.Apply(t.Context(), []byte(familyService(c.spec)), api.ManifestOptions{})
			if refusal, refused := strings.CutPrefix(c.want, "!"); refused {
				if err == nil || !strings.Contains(err.Error(), refusal) {
					t.Errorf("got %v, want %q", err, refusal)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := standing(t, r); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
