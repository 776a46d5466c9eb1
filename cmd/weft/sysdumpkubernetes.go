package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/connectivity"
	"github.com/weft-mesh/weft/sysdump"
)

var errSilent = errors.New("the agent there does not answer")

// maxListed bounds how many objects of a kind an archive holds.
const maxListed = 2000

// kubernetes collects what Kubernetes says about Weft and its nodes, and from each node
// what its agent's container sees. Only what is named here is asked for; Secrets never are.
func (d *dump) kubernetes(ctx context.Context, dir string, conf *rest.Config, client kubernetes.Interface) {
	at := dir + "/kubernetes"
	system := api.SystemNamespace
	list := metav1.ListOptions{Limit: maxListed}
	keep(ctx, d, at+"/version.json", func(context.Context) (any, error) { return client.Discovery().ServerVersion() })
	var g errgroup.Group
	g.SetLimit(dumpAtOnce)
	ask := func(name string, get func(ctx context.Context) (any, error)) {
		g.Go(func() error {
			keep(ctx, d, at+"/"+name+".json", func(ctx context.Context) (any, error) {
				l, err := get(ctx)
				if err != nil {
					return nil, err
				}
				return ours(l)
			})
			return nil
		})
	}
	ask("nodes", func(ctx context.Context) (any, error) { return client.CoreV1().Nodes().List(ctx, list) })
	ask("pods", func(ctx context.Context) (any, error) { return client.CoreV1().Pods(system).List(ctx, list) })
	ask("daemonsets", func(ctx context.Context) (any, error) { return client.AppsV1().DaemonSets(system).List(ctx, list) })
	ask("deployments", func(ctx context.Context) (any, error) { return client.AppsV1().Deployments(system).List(ctx, list) })
	ask("statefulsets", func(ctx context.Context) (any, error) { return client.AppsV1().StatefulSets(system).List(ctx, list) })
	ask("events", func(ctx context.Context) (any, error) { return client.CoreV1().Events(system).List(ctx, list) })
	// Those about what Weft does not apply are at the objects.
	ask("events-not-applied", func(ctx context.Context) (any, error) {
		return client.CoreV1().Events("").List(ctx, metav1.ListOptions{Limit: maxListed, FieldSelector: "reason=NotApplied"})
	})
	g.Go(func() error { d.ownKinds(ctx, at, conf, client); return nil })
	limited, cancel := bounded(ctx)
	pods, err := client.CoreV1().Pods(system).List(limited, list)
	cancel()
	if err != nil {
		g.Wait()
		d.Miss(at+"/logs", err)
		return
	}
	for _, p := range pods.Items {
		for _, c := range p.Spec.Containers {
			g.Go(func() error { d.log(ctx, at, client, &p, c.Name, false); return nil })
			if slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == c.Name && s.RestartCount > 0 }) {
				g.Go(func() error { d.log(ctx, at, client, &p, c.Name, true); return nil })
			}
		}
	}
	g.Go(func() error { d.nodes(ctx, dir, conf, client, pods.Items); return nil })
	g.Wait()
}

// ours are nodes and objects of Weft's own namespace: what their containers run with is Weft's.
func ours(o any) (any, error) {
	plain, err := plainJSON(o)
	if err != nil {
		return nil, err
	}
	return sysdump.WithoutManagers(plain), nil
}

// ownKinds collects the objects of Weft's own kinds, whichever there are.
func (d *dump) ownKinds(ctx context.Context, at string, conf *rest.Config, client kubernetes.Interface) {
	_, lists, err := client.Discovery().ServerGroupsAndResources()
	if err != nil && len(lists) == 0 {
		d.Miss(at+"/objects", err)
		return
	}
	all, err := dynamic.NewForConfig(conf)
	if err != nil {
		d.Miss(at+"/objects", err)
		return
	}
	for _, l := range lists {
		version, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil || version.Group != "weft.io" && !strings.HasSuffix(version.Group, ".weft.io") {
			continue
		}
		for _, r := range l.APIResources {
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "list") {
				continue
			}
			keep(ctx, d, at+"/objects/"+r.Name+".json", func(ctx context.Context) (any, error) {
				o, err := all.Resource(version.WithResource(r.Name)).List(ctx, metav1.ListOptions{Limit: maxListed})
				if err != nil {
					return nil, err
				}
				return sysdump.Redact(o.UnstructuredContent()), nil
			})
		}
	}
}

// log collects the log of a container.
func (d *dump) log(ctx context.Context, at string, client kubernetes.Interface, p *corev1.Pod, container string, previous bool) {
	name := fmt.Sprintf("%s/logs/%s/%s.log", at, p.Name, container)
	if previous {
		name = strings.TrimSuffix(name, ".log") + ".previous.log"
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	r, err := client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: container, Previous: previous, TailLines: &d.lines}).Stream(ctx)
	if err != nil {
		d.Miss(name, err)
		return
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, 4*sysdump.MaxEntry))
	if err != nil {
		d.Miss(name, err)
	}
	d.AddLog(name, text)
}

// nodes collects, from each node, what its agent's container sees.
func (d *dump) nodes(ctx context.Context, dir string, conf *rest.Config, client kubernetes.Interface, pods []corev1.Pod) {
	limited, cancel := bounded(ctx)
	nodes, err := client.CoreV1().Nodes().List(limited, metav1.ListOptions{Limit: maxListed})
	cancel()
	if err != nil {
		d.Miss(dir+"/nodes", err)
		return
	}
	var g errgroup.Group
	g.SetLimit(dumpAtOnce)
	for _, n := range nodes.Items {
		folder := dir + "/nodes/" + fileName(n.Name)
		i := slices.IndexFunc(pods, func(p corev1.Pod) bool {
			return p.Spec.NodeName == n.Name && p.Labels["app.kubernetes.io/component"] == "agent" && p.Status.Phase == corev1.PodRunning
		})
		if i < 0 {
			d.Miss(folder, fmt.Errorf("no agent runs there; run `weft sysdump --local` on the node"))
			continue
		}
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*dumpPatience)
			defer cancel()
			packed, err := connectivity.Exec(ctx, conf, client, pods[i].Namespace, pods[i].Name, "agent", "/usr/bin/weft", "sysdump", "--local", "--out", "-", "--limit", dumpPatience.String())
			if err == nil {
				err = d.Merge(folder, archiveOf(packed))
			}
			if err != nil {
				d.Miss(folder, err)
			}
			return nil
		})
	}
	g.Wait()
}
