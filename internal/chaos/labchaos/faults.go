package main

import "fmt"

// fault is something that breaks, and is mended later.
type fault struct {
	name string
	// takes is what no other fault may touch until this one is mended.
	takes []string
	// harms says that packets may be lost when it begins or ends.
	harms bool
	begin []string
	// asks is the cluster whose status says says, once it has been so for a few seconds.
	asks, says string
	end        []string
}

// tunnelPorts select what nodes send through their tunnels.
const tunnelPorts = "udp/51871 udp/51872"

func agentKilled(cluster, node string) fault {
	at := cluster + "/" + node
	return fault{
		name:  "the agent on " + at + " dies",
		takes: []string{"agent " + at},
		begin: []string{"kill agent@" + at},
		asks:  cluster, says: fmt.Sprintf("agent on %s has not answered|node %s is down", node, node),
		end: []string{"start agent@" + at},
	}
}

func serverKilled(cluster string) fault {
	return fault{
		name:  "the API server of " + cluster + " dies",
		takes: []string{"server " + cluster},
		begin: []string{"kill apiserver@" + cluster},
		asks:  other(cluster), says: fmt.Sprintf("control link to %s is (down|not up yet)", cluster),
		end: []string{"start apiserver@" + cluster, "*30s weft -c " + cluster + " status"},
	}
}

// everythingKilled leaves a cluster to its kernels.
func everythingKilled(cluster string) fault {
	return fault{
		name:  "everything in " + cluster + " but its tunnels dies",
		takes: []string{"server " + cluster, "agent " + cluster + "/n1", "agent " + cluster + "/n2"},
		begin: []string{"kill apiserver@" + cluster + " agent@" + cluster},
		asks:  other(cluster), says: fmt.Sprintf("control link to %s is (down|not up yet)", cluster),
		end: []string{"start apiserver@" + cluster + " agent@" + cluster, "*30s weft -c " + cluster + " status"},
	}
}

func tunnelKilled(cluster, node string) fault {
	at := cluster + "/" + node
	return fault{
		name: "the tunnel process on " + at + " dies", harms: true,
		takes: []string{"tunnel " + at, "agent " + at},
		begin: []string{"kill tunnel@" + at},
		asks:  cluster, says: fmt.Sprintf("tunnel on %s is down|path %s/%s |between the nodes of %s|%s → ", node, cluster, node, cluster, cluster),
		end: []string{"start tunnel@" + at},
	}
}

// cutOff separates the clusters: wholly, or one kind of flows.
func cutOff(flows string) fault {
	f := fault{
		takes: []string{"link"}, harms: flows != "control",
		begin: []string{words("cut east west", flows)},
		asks:  "east", says: "control link to west is (down|not up yet)",
		end: []string{words("heal east west", flows)},
	}
	switch flows {
	case "":
		f.name = "nothing passes between the clusters"
	case "control":
		f.name = "the API servers do not hear from each other"
	default:
		f.name, f.says = "nothing passes through the tunnels between the clusters", "east → west: 0 of|path east/n[12] → west"
	}
	return f
}

// oneWay cuts what a node sends to one of the other cluster.
func oneWay(from, to string) fault {
	cluster := from[:len(from)-len("/n1")]
	return fault{
		name:  "nothing passes through the tunnel from " + from + " to " + to,
		takes: []string{"link", "agent " + from, "tunnel " + from, "tunnel " + to}, harms: true,
		begin: []string{fmt.Sprintf("cut %s %s %s", from, to, tunnelPorts)},
		asks:  cluster, says: fmt.Sprintf("path %s → %s is down", from, to),
		end: []string{fmt.Sprintf("heal %s %s %s", from, to, tunnelPorts)},
	}
}

// unread keeps an agent from its store, which is compacted meanwhile: it has to list
// again what it has missed.
func unread(cluster string) fault {
	from, to := cluster+"/n2", cluster+"/n1"
	return fault{
		name:  "the agent on " + from + " does not reach its store, which is compacted",
		takes: []string{"agent " + from, "server " + cluster},
		begin: []string{fmt.Sprintf("cut %s %s tcp/2379 tcp/7443", from, to), "etcd " + cluster + " root compact"},
		asks:  cluster, says: "node n2 cannot read its store",
		end: []string{fmt.Sprintf("heal %s %s tcp/2379 tcp/7443", from, to)},
	}
}

func isolated(cluster string) fault {
	at := cluster + "/n2"
	return fault{
		name: at + " is cut off", harms: true,
		takes: []string{"agent " + at, "tunnel " + at, "link"},
		begin: []string{"cut " + at},
		asks:  cluster, says: "node n2 is down|agent on n2 has not answered",
		end: []string{"heal " + at},
	}
}

func slow() fault {
	return fault{
		name: "packets between the clusters take 40 ms", takes: []string{"quality"},
		begin: []string{"delay east west 40ms"}, end: []string{"delay east west 0s"},
	}
}

func lossy() fault {
	return fault{
		name: "a packet of fifty between the clusters is lost", takes: []string{"quality"}, harms: true,
		begin: []string{"loss east west 0.02"}, end: []string{"loss east west 0"},
	}
}

// diskFull shows by a pod that cannot be recorded.
func diskFull() fault {
	return fault{
		name: "the disk of east/n2 is full", takes: []string{"agent east/n2", "server east"},
		begin: []string{"disk fill east/n2", "weft -c east apply late.yaml"},
		asks:  "east", says: "pod default/late on node n2: .*no space left on device",
		end: []string{
			"disk free east/n2", "*30s weft -c east get pods", "*30s stdout 'late .* yes '",
			"weft -c east delete -f late.yaml", "*30s at east/n2 ls /run/netns", "*30s ! stdout late",
		},
	}
}

// lost is a store that is lost and restored from the last backup; in between, an empty one
// takes its place if emptied is set.
func lost(cluster string, emptied bool) fault {
	at := cluster + "/n1"
	f := fault{
		name: "the store of " + cluster + " is lost", takes: []string{"server " + cluster, "restore"},
		begin: []string{"kill apiserver@" + at, "at " + at + " rm -r /var/lib/weft/apiserver"},
		asks:  other(cluster), says: fmt.Sprintf("control link to %s is (down|not up yet)", cluster),
		end: []string{
			fmt.Sprintf("put %s.backup %s /var/lib/weft/%s.backup", cluster, at, cluster),
			fmt.Sprintf("at %s weft restore /var/lib/weft/%s.backup", at, cluster),
			"start apiserver@" + at, "*30s weft -c " + cluster + " status",
		},
	}
	if emptied {
		f.name = "the store of " + cluster + " is emptied"
		f.begin = []string{"kill apiserver@" + at, "at " + at + " rm -r /var/lib/weft/apiserver/etcd", "start apiserver@" + at}
		f.asks, f.says = cluster, "node n[12] is not let in"
		f.end = append([]string{"kill apiserver@" + at}, f.end...)
		f.end = append(f.end, "at "+at+" sh -c 'rm -r /var/lib/weft/apiserver/etcd-before-*'") // it takes much of a small disk
	}
	return f
}
