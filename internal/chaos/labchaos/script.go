package main

import (
	_ "embed"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/wire"
)

// world is what a script is about: the clusters, and the objects that come and go.
//
//go:embed world.txtar
var world string

// clusters and nodes are those of world.
var (
	clusters = []string{"east", "west"}
	nodes    = []string{"n1", "n2"}
)

func other(cluster string) string {
	if cluster == "east" {
		return "west"
	}
	return "east"
}

func randOf(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func words(parts ...string) string { return strings.TrimSpace(strings.Join(parts, " ")) }

// extras is how many sets of pods, service, namespace come and go in each cluster.
const extras = 2

// most is how many things are broken at the same time.
const most = 3

// Script writes a story of so many steps, chosen by the seed alone: what breaks, what is
// mended, and what operators do meanwhile. At its end everything is mended, and the script
// checks that nothing is missing and nothing left over.
func Script(seed uint64, steps int) []byte {
	s := &story{rand: randOf(seed), has: map[string][]string{}, kept: map[string][]string{}}
	s.say("# Seed %d: whatever breaks and is mended, packets follow policy, and nothing is lost or left over.", seed)
	s.begin()
	for range steps {
		s.step()
	}
	s.finish()
	files := world
	for _, c := range clusters {
		for i := range extras {
			for _, kind := range []string{"extra", "lock"} {
				files += fmt.Sprintf("-- %s --\n%s", file(kind, c, i), strings.ReplaceAll(part(world, kind+".yaml"), "-N", fmt.Sprintf("-%s-%d", c, i)))
			}
		}
	}
	return []byte(s.text.String() + "\n" + files)
}

// part is an attached file of world.
func part(text, name string) string {
	_, rest, _ := strings.Cut(text, "-- "+name+" --\n")
	body, _, _ := strings.Cut(rest, "\n-- ")
	return strings.TrimSuffix(body, "\n") + "\n"
}

func file(kind, cluster string, i int) string { return fmt.Sprintf("%s-%s-%d.yaml", kind, cluster, i) }

// story is a script being written, and what is so at this point of it.
type story struct {
	rand *rand.Rand
	text strings.Builder
	n    int // steps

	broken []fault
	has    map[string][]string // by cluster: manifests applied beyond the first
	kept   map[string][]string // by cluster: those in its last backup
}

func (s *story) say(format string, args ...any) { fmt.Fprintf(&s.text, format+"\n", args...) }

func (s *story) lines(lines []string) {
	for _, l := range lines {
		s.say("%s", l)
	}
}

// begin sets up the clusters, and the loads that run to the end.
func (s *story) begin() {
	s.lines([]string{
		"",
		"weft -c east peer add west",
		"weft -c east,west apply web.yaml client.yaml",
		"*30s weft -c all status --check",
	})
	for _, c := range clusters {
		s.lines([]string{
			fmt.Sprintf("*20s load start %s --rate 20 --timeout 3s %s/client http://web", c, c),
			fmt.Sprintf("*30s load answers %s east/web-1 east/web-2 west/web-1 west/web-2", c),
			fmt.Sprintf("*10s load steady %s", c),
			fmt.Sprintf("load start %s-intruder --rate 10 --timeout 300ms %s/intruder http://web", c, c),
			fmt.Sprintf("*10s load blocked %s-intruder", c),
		})
		s.backUp(c)
	}
	s.say("")
	s.say("# What everything is like before anything breaks")
	s.look("save", "before")
	s.lines([]string{
		"metrics agent@* apiserver@*", `figure goroutines_before sum '^go_goroutines (\S+)'`, "memory before",
	})
}

// look saves, or compares with what was saved, what must be the same in the end.
func (s *story) look(do, name string) {
	way := func(command, of string) {
		if do == "save" {
			s.lines([]string{command, "save " + of + "." + name})
		} else {
			s.lines([]string{"*60s " + command, "*60s cmp stdout " + of + "." + name})
		}
	}
	for _, c := range clusters {
		for _, n := range nodes {
			at := c + "/" + n
			way("datapath "+at, c+"-"+n+"-maps")
			way("at "+at+" ls /run/netns", c+"-"+n+"-namespaces")
			way("at "+at+" sh -c 'cut -d: -f1 /proc/net/dev | sort'", c+"-"+n+"-devices")
		}
		for name, prefix := range keys(c) {
			way("etcd "+c+" root get --prefix --keys "+prefix, c+"-"+name)
		}
	}
}

// keys yields what of a cluster's store is compared. Identities stay for a quarter of an
// hour after their last pod, so they are not.
func keys(cluster string) iter.Seq2[string, string] {
	return func(yield func(name, prefix string) bool) {
		for _, r := range []wire.Resource{wire.Nodes, wire.IPs, wire.Services, wire.EndpointSlices} {
			if !yield("state-"+string(r), r.StatePrefix(cluster)) || !yield("cache-"+string(r), r.AllCachePrefix()) {
				return
			}
		}
		_ = yield("nodes", wire.NodesPrefix) && yield("objects", wire.ObjectsPrefix)
	}
}

// step is one thing that breaks, is mended or changes.
func (s *story) step() {
	s.n++
	switch r := s.rand.IntN(10); {
	case r < 5 && len(s.broken) < most && s.breakSomething():
	case r < 8 && len(s.broken) > 0:
		s.mend(s.rand.IntN(len(s.broken)))
	default:
		s.change()
	}
}

// free says that nothing broken takes any of these.
func (s *story) free(what ...string) bool {
	return !slices.ContainsFunc(s.broken, func(f fault) bool {
		return slices.ContainsFunc(f.takes, func(t string) bool { return slices.Contains(what, t) })
	})
}

func (s *story) breakSomething() bool {
	c, n := s.cluster(), nodes[s.rand.IntN(len(nodes))]
	all := []fault{
		agentKilled(c, n), agentKilled(other(c), n), serverKilled(c), everythingKilled(c), tunnelKilled(c, n),
		cutOff(""), cutOff("control"), cutOff(tunnelPorts), oneWay(c+"/"+n, other(c)+"/n2"), oneWay(c+"/n1", other(c)+"/"+n),
		unread(c), isolated(c), slow(), lossy(), diskFull(), lost(c, false), lost(c, true),
	}
	f := all[s.rand.IntN(len(all))]
	if !s.free(f.takes...) {
		return false
	}
	s.open("%s", f.name)
	s.disturb(f)
	s.lines(f.begin)
	s.broken = append(s.broken, f)
	// Its own API server has to be there to say so, and to hear of it.
	if f.asks != "" && s.free("server "+f.asks) || f.asks != "" && slices.Contains(f.takes, "server "+f.asks) && s.only(f, "server "+f.asks) {
		s.lines([]string{"*40s weft -c " + f.asks + " status", "*40s stdout '" + f.says + "'"})
	}
	s.settle(f.harms)
	return true
}

// disturb marks the moment from which the loads may feel a fault, or that it is mended.
func (s *story) disturb(f fault) {
	if f.harms {
		s.say("mark fault")
	}
}

// only says that nothing but f takes this.
func (s *story) only(f fault, what string) bool {
	return !slices.ContainsFunc(s.broken, func(g fault) bool { return g.name != f.name && slices.Contains(g.takes, what) })
}

func (s *story) mend(i int) {
	f := s.broken[i]
	s.open("mended: %s", f.name)
	s.disturb(f)
	s.lines(f.end)
	s.broken = slices.Delete(s.broken, i, i+1)
	if slices.Contains(f.takes, "restore") {
		s.apply(f)
	}
	s.settle(f.harms)
}

// apply does again what was done since the backup that was restored.
func (s *story) apply(f fault) {
	c := strings.TrimPrefix(f.takes[0], "server ")
	for _, file := range s.kept[c] {
		if !slices.Contains(s.has[c], file) {
			s.say("*20s weft -c %s delete -f %s", c, file)
		}
	}
	for _, file := range s.has[c] {
		if !slices.Contains(s.kept[c], file) {
			s.say("*20s weft -c %s apply %s", c, file)
		}
	}
}

func (s *story) cluster() string { return clusters[s.rand.IntN(len(clusters))] }

// change is what an operator does: pods, services, namespaces and policies come and go,
// and backups are made.
func (s *story) change() {
	c := s.cluster()
	if !s.free("server " + c) {
		c = other(c)
	}
	if !s.free("server " + c) {
		s.open("nothing changes")
		s.settle(false)
		return
	}
	i := s.rand.IntN(extras)
	switch s.rand.IntN(8) {
	case 0:
		s.open("%s is backed up", c)
		s.backUp(c)
	case 1:
		s.open("the store of %s is compacted", c)
		s.say("etcd %s root compact", c)
	case 2:
		s.toggle(c, "narrow.yaml")
	case 3:
		s.open("the service web of %s prefers its own cluster, then does not", c)
		s.lines([]string{"weft -c " + c + " apply near.yaml", "weft -c " + c + " apply web.yaml"})
	case 4, 5:
		if slices.Contains(s.has[c], file("extra", c, i)) {
			s.toggle(c, file("lock", c, i))
			break
		}
		fallthrough
	default:
		s.toggle(c, file("extra", c, i))
	}
	s.settle(false)
}

func (s *story) backUp(c string) {
	s.say("? at operator rm $WORK/%s.backup", c)
	s.say("weft -c %s backup %s.backup", c, c)
	s.kept[c] = slices.Clone(s.has[c])
}

// toggle applies what a cluster does not have, or deletes what it has. What can be seen of
// it at once is waited for if nothing is broken.
func (s *story) toggle(c, name string) {
	if i := slices.Index(s.has[c], name); i >= 0 {
		s.open("%s leaves %s", name, c)
		s.say("weft -c %s delete -f %s", c, name)
		s.has[c] = slices.Delete(s.has[c], i, i+1)
	} else {
		s.open("%s comes to %s", name, c)
		s.say("weft -c %s apply %s", c, name)
		s.has[c] = append(s.has[c], name)
	}
	if len(s.broken) > 0 || !strings.Contains(name, "-") {
		return
	}
	host := strings.TrimSuffix(name[strings.Index(name, "-")+1:], ".yaml")
	open := slices.Contains(s.has[c], "extra-"+host+".yaml") && !slices.Contains(s.has[c], "lock-"+host+".yaml")
	request := fmt.Sprintf("request --timeout 500ms %s/client http://extra-%s", c, host)
	if open {
		s.say("*30s %s", request)
	} else {
		s.say("*30s ! %s", request)
	}
}

// open begins a step.
func (s *story) open(format string, args ...any) {
	s.say("")
	s.say("# %d: "+format, append([]any{s.n}, args...)...)
	s.say("mark step%d", s.n)
}

// settle checks the loads after a step. What loses packets may do so for a moment; all else
// does not concern them.
func (s *story) settle(harms bool) {
	for _, c := range clusters {
		switch {
		case harms:
			s.say("*20s load recovered %s %s_disturbed --steady 500ms", c, c)
			s.say("*20s load steady %s", c)
		case !s.free("link") || !s.free("quality") || slices.ContainsFunc(s.broken, func(f fault) bool { return f.harms }):
			s.say("*20s load steady %s", c)
		default:
			s.say("*10s load check %s --since step%d --min 10", c, s.n)
			s.say("load check %s --since step%d --max-failed 0", c, s.n)
		}
		s.say("load check %s-intruder --max-answered 0", c)
	}
}

// finish mends all, takes back what was applied, and looks for what is missing or left.
func (s *story) finish() {
	for len(s.broken) > 0 {
		s.n++
		s.mend(0)
	}
	s.say("")
	s.say("# All is mended and taken back: all is well, and not a request fails")
	s.say("heal all")
	for _, c := range clusters {
		for _, name := range slices.Backward(s.has[c]) {
			s.say("*30s weft -c %s delete -f %s", c, name)
		}
	}
	s.lines([]string{"*60s weft -c all status --check", "mark calm"})
	for _, c := range clusters {
		s.lines([]string{
			fmt.Sprintf("*20s load answers %s east/web-1 east/web-2 west/web-1 west/web-2", c),
			fmt.Sprintf("*20s load check %s --since calm --min 40", c),
			fmt.Sprintf("load check %s --since calm --max-failed 0", c),
			fmt.Sprintf("load check %s-intruder --max-answered 0", c),
		})
	}
	s.say("")
	s.say("# Nothing is missing and nothing left over: map rows, namespaces, devices, keys, goroutines, memory")
	s.look("cmp", "before")
	s.lines([]string{
		"metrics agent@* apiserver@*", `figure goroutines_after sum '^go_goroutines (\S+)'`,
		"figure goroutines goroutines_after - goroutines_before", "expect goroutines < 100",
		"memory after",
		"figure agent_mib after_agent_mib - before_agent_mib", "expect agent_mib < 64",
		"figure apiserver_mib after_apiserver_mib - before_apiserver_mib", "expect apiserver_mib < 192",
		"",
		"# Agents that start derive the same, from the maps that they find and from none",
		"restart agent@*",
		"*60s weft -c all status --check",
	})
	s.maps()
	s.say("stop agent@*")
	for _, c := range clusters {
		for _, n := range nodes {
			s.say("at %s/%s sh -c 'rm /sys/fs/bpf/weft/*'", c, n)
		}
	}
	s.lines([]string{"start agent@*", "*60s weft -c all status --check"})
	s.maps()
	for _, c := range clusters {
		s.lines([]string{
			fmt.Sprintf("*20s load steady %s", c),
			fmt.Sprintf("*20s load blocked %s-intruder", c),
		})
	}
}

// maps compares the maps with those of the beginning.
func (s *story) maps() {
	for _, c := range clusters {
		for _, n := range nodes {
			s.lines([]string{fmt.Sprintf("*60s datapath %s/%s", c, n), fmt.Sprintf("*60s cmp stdout %s-%s-maps.before", c, n)})
		}
	}
}
