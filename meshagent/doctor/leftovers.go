package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/cni/conflist"
)

// Rules are a packet filter's.
type Rules interface {
	// Read returns all tables.
	Read() ([]Table, error)
	// Remove removes what a plan names, at once.
	Remove(Plan) error
}

// Table is one of a packet filter.
type Table struct {
	Family, Name string
	Chains       []Chain
}

// Chain is a table's.
type Chain struct {
	Name  string
	Rules []Rule
}

// Rule is a chain's: as far as it is of interest, which chains it leads to.
type Rule struct {
	Handle uint64
	Jumps  []string
}

// Plan is what is removed for one owner.
type Plan struct {
	Tables []TableName
	// Rules lead from chains that stay into those that go.
	Rules  []RuleName
	Chains []ChainName
}

// TableName, ChainName and RuleName name what is removed.
type (
	TableName struct{ Family, Name string }
	ChainName struct {
		TableName
		Chain string
	}
	RuleName struct {
		ChainName
		Handle uint64
		To     string
	}
)

func (t TableName) String() string { return "table " + t.Family + " " + t.Name }
func (c ChainName) String() string { return fmt.Sprintf("chain %s %s %s", c.Family, c.Name, c.Chain) }
func (r RuleName) String() string {
	return fmt.Sprintf("rule %s %s %s to %s", r.Family, r.Name, r.Chain, r.To)
}

// The owners of what may be left behind.
const (
	kubeProxy  = "kube-proxy"
	cilium     = "Cilium"
	flannel    = "flannel"
	calico     = "Calico"
	kubeRouter = "kube-router"
	weave      = "Weave"
	antrea     = "Antrea"
)

// kubelets are the chains that kubelet makes itself, and makes again.
var kubelets = []string{"KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-FIREWALL", "KUBE-MARK-DROP"}

// chainPrefixes tell whose a chain of iptables is. The longer ones come first.
var chainPrefixes = []struct{ prefix, owner string }{
	{"KUBE-ROUTER-", kubeRouter}, {"KUBE-POD-FW-", kubeRouter}, {"KUBE-NWPLCY-", kubeRouter},
	{"KUBE-", kubeProxy}, {"CILIUM_", cilium}, {"OLD_CILIUM_", cilium}, {"FLANNEL-", flannel}, {"cali-", calico}, {"WEAVE", weave}, {"ANTREA-", antrea},
}

// ownerOfChain says whose a chain is; "" if nobody's whom we know.
func ownerOfChain(name string) string {
	if slices.Contains(kubelets, name) {
		return ""
	}
	for _, p := range chainPrefixes {
		if strings.HasPrefix(name, p.prefix) {
			return p.owner
		}
	}
	return ""
}

// ownerOfTable says whose a whole table of nftables is.
func ownerOfTable(name string) string {
	switch {
	case name == "kube-proxy":
		return kubeProxy
	case name == "calico":
		return calico
	case strings.HasPrefix(name, "flannel-"):
		return flannel
	}
	return ""
}

// plans are what each owner has left.
func plans(tables []Table) map[string]Plan {
	out := map[string]Plan{}
	for _, t := range tables {
		at := TableName{t.Family, t.Name}
		if owner := ownerOfTable(t.Name); owner != "" {
			p := out[owner]
			p.Tables = append(p.Tables, at)
			out[owner] = p
			continue
		}
		for _, c := range t.Chains {
			in := ChainName{at, c.Name}
			if owner := ownerOfChain(c.Name); owner != "" {
				p := out[owner]
				p.Chains = append(p.Chains, in)
				out[owner] = p
			}
		}
		// What leads from a chain that stays, or from another owner's, into one that goes.
		for _, c := range t.Chains {
			own := ownerOfChain(c.Name)
			for _, r := range c.Rules {
				for _, to := range r.Jumps {
					if owner := ownerOfChain(to); owner != "" && owner != own {
						p := out[owner]
						p.Rules = append(p.Rules, RuleName{ChainName{at, c.Name}, r.Handle, to})
						out[owner] = p
						break
					}
				}
			}
		}
	}
	return out
}

func (p Plan) details() (out []string) {
	for _, t := range p.Tables {
		out = append(out, "remove "+t.String())
	}
	for _, r := range p.Rules {
		out = append(out, "remove "+r.String())
	}
	for _, c := range p.Chains {
		out = append(out, "remove "+c.String())
	}
	return out
}

func rules(_ context.Context, l *look) (out []Finding) {
	for _, filter := range []struct {
		name  string
		rules Rules
	}{{"nftables", l.Rules}, {"iptables-legacy", l.Legacy}} {
		tables, err := filter.rules.Read()
		if err != nil {
			out = append(out, unseen("the rules of "+filter.name, err))
			continue
		}
		left := plans(tables)
		for _, owner := range slices.Sorted(maps.Keys(left)) {
			p := left[owner]
			var parts []string
			if n := len(p.Tables); n > 0 {
				parts = append(parts, plural(n, "table"))
			}
			if n := len(p.Chains); n > 0 {
				parts = append(parts, plural(n, "chain"))
			}
			if n := len(p.Rules); n > 0 {
				parts = append(parts, plural(n, "rule")+" that lead into them")
			}
			f := Finding{
				Severity: Warning, Message: owner + " has left " + strings.Join(parts, ", ") + " in " + filter.name, Details: p.details(),
				Means: "packets of this node and of its pods are also judged or translated by rules that nobody keeps up to date",
			}
			if l.running[owner] {
				f.Next = owner + " runs on this node and would write them again: remove it first, then `weft doctor --fix`"
			} else {
				f.Next = "weft doctor --fix removes them, and no others"
				f.fix = func(context.Context) error { return filter.rules.Remove(p) }
			}
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		out = append(out, Finding{Severity: OK, Message: "no rules of kube-proxy or another network plugin"})
	}
	return out
}

// linkOwners are the devices that other plugins make for a node, and podLinks the prefixes of
// those that they make for pods.
var (
	linkOwners = map[string]string{
		"kube-ipvs0": kubeProxy, "cilium_host": cilium, "cilium_net": cilium, "cilium_vxlan": cilium, "cilium_geneve": cilium, "cilium_wg0": cilium, "lxc_health": cilium,
		"flannel.1": flannel, "flannel-v6.1": flannel, "flannel-wg": flannel, "cni0": flannel, "vxlan.calico": calico, "vxlan-v6.calico": calico, "wireguard.cali": calico, "wg-v6.cali": calico,
		"kube-bridge": kubeRouter, "kube-dummy-if": kubeRouter, "weave": weave, "antrea-gw0": antrea,
	}
	podLinks = map[string]string{"lxc": cilium, "cali": calico}
)

func links(_ context.Context, l *look) (out []Finding) {
	left, pods := map[string][]string{}, map[string][]string{}
	for _, link := range l.links {
		if owner := linkOwners[link.Name]; owner != "" {
			left[owner] = append(left[owner], link.Name)
			continue
		}
		if link.Kind != "veth" {
			continue
		}
		if owner := linkOwners[link.Master]; owner != "" {
			pods[owner] = append(pods[owner], link.Name)
			continue
		}
		for prefix, owner := range podLinks {
			if strings.HasPrefix(link.Name, prefix) {
				pods[owner] = append(pods[owner], link.Name)
			}
		}
	}
	for _, owner := range slices.Sorted(maps.Keys(pods)) {
		out = append(out, Finding{
			Severity: Warning, Message: fmt.Sprintf("the network of %s is still in use by %s: %s", owner, plural(len(pods[owner]), "pod"), some(pods[owner], 3)),
			Means: "they are not part of the mesh: no policy of Weft's is enforced for them, and nobody else reaches them", Next: "restart these pods",
		})
	}
	for _, owner := range slices.Sorted(maps.Keys(left)) {
		names := left[owner]
		f := Finding{
			Severity: Warning, Message: fmt.Sprintf("%s has left %s: %s", owner, plural(len(names), "device"), strings.Join(names, ", ")),
			Means: "their addresses and routes may take packets that are Weft's",
		}
		for _, name := range names {
			f.Details = append(f.Details, "remove device "+name)
		}
		switch {
		case l.running[owner]:
			f.Next = owner + " runs on this node: remove it first, then `weft doctor --fix`"
		case len(pods[owner]) > 0:
			f.Next = "restart the pods that use them first, then `weft doctor --fix`"
		default:
			f.Next = "weft doctor --fix removes them"
			f.fix = func(context.Context) error {
				var errs []error
				for _, name := range names {
					errs = append(errs, l.RemoveLink(name))
				}
				return errors.Join(errs...)
			}
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		out = append(out, Finding{Severity: OK, Message: "no devices of another network plugin"})
	}
	return out
}

// programs are those of Cilium, whose names begin in one way.
func programs(_ context.Context, l *look) []Finding {
	names, err := l.Programs(l.node.CgroupRoot)
	if err != nil {
		return []Finding{unseen("BPF programs", err)}
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, "cil_") && !strings.HasPrefix(name, "cali_") })
	if len(names) == 0 {
		return []Finding{{Severity: OK, Message: "no BPF programs of another network plugin"}}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return []Finding{{
		Severity: Warning, Message: "BPF programs of another network plugin are attached: " + some(names, 4), Details: names,
		Means: "packets or connections are handled before Weft sees them", Next: "remove that plugin as its manual says (`cilium-dbg post-uninstall-cleanup`), or reboot the node",
	}}
}

// disabled is the suffix of configurations that Fix puts aside.
const disabled = ".weft-disabled"

func cniConfigurations(_ context.Context, l *look) (out []Finding) {
	if l.node.CNIConfDir == "" {
		return nil
	}
	dir := filepath.Join(l.Root, l.node.CNIConfDir)
	others, err := conflist.Others(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return []Finding{unseen("network configurations", err)}
	}
	for _, o := range others {
		if o.Calls {
			continue // it calls the others on purpose
		}
		path := filepath.Join(l.node.CNIConfDir, o.File)
		f := Finding{Severity: Info, Message: fmt.Sprintf("%s is another network (%s), which comes after Weft's", path, o.Types), Means: "a runtime uses it if Weft's is missing", Next: "remove it"}
		if o.First {
			f.Severity, f.Message = Error, fmt.Sprintf("a container runtime uses %s (%s) instead of Weft's network", path, o.Types)
			f.Means, f.Next = "new pods get another plugin's network", "weft doctor --fix puts it aside; remove that plugin first, which may write it again"
			from := filepath.Join(dir, o.File)
			f.Details = []string{"rename " + path + " to " + o.File + disabled}
			f.fix = func(context.Context) error { return os.Rename(from, from+disabled) }
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		out = append(out, Finding{Severity: OK, Message: "no other network is configured in " + l.node.CNIConfDir})
	}
	return out
}
