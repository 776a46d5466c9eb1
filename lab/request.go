package lab

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/weft-mesh/weft/api"
)

// The lab requests pods' networks of their nodes' agents, as a container runtime does: with
// a pod's first sight, again if the network is lost, and to remove it when the pod is gone.

const (
	// agentSocket is where an agent takes requests.
	agentSocket = "/run/weft/agent.sock"
	// lostPatience is how long a pod may be without the network that it had before it is
	// requested again: an agent may have seen first that the pod is gone, and after a power
	// loss it brings back by itself what it has on disk.
	lostPatience = time.Second
	// requestAgain is the pause after a request that failed.
	requestAgain = 300 * time.Millisecond
	// requestPatience bounds a request.
	requestPatience = 30 * time.Second
)

// request is what is requested for a pod.
type request string

const (
	nothing       request = ""
	addNetwork    request = "add"
	removeNetwork request = "remove"
)

// requests is what the lab knows of its requests for one pod.
type requests struct {
	handled bool      // one is being handled
	added   string    // UID of the pod whose network was added last
	lost    time.Time // since when that network has been missing; zero if it is there
	again   time.Time // when to repeat what failed
}

// due decides what to request for the pod with a UID. there says whether it has a network,
// and gone that it should not.
func (r *requests) due(now time.Time, uid string, there, gone bool) request {
	if there || r.added != uid {
		r.lost = time.Time{}
	} else if r.lost.IsZero() {
		r.lost = now
	}
	switch {
	case r.handled || now.Before(r.again):
		return nothing
	case gone:
		return removeNetwork
	case r.added != uid, !r.lost.IsZero() && now.Sub(r.lost) >= lostPatience:
		return addNetwork
	}
	return nothing
}

// syncNetworkLocked makes the request that is due for a pod.
func (l *Lab) syncNetworkLocked(state *podState) {
	if state.spec.HostNetwork || !state.Node.Powered() {
		if state.gone && !state.requests.handled {
			l.forgetLocked(state)
		}
		return
	}
	due := state.requests.due(time.Now(), state.uid, state.network() != 0, state.gone)
	if due == nothing {
		return
	}
	state.requests.handled = true
	req := api.EndpointRequest{Namespace: state.Namespace, Name: state.Name, UID: state.uid}
	node, socket := state.Node, state.Node.path(agentSocket)
	l.group.Go(func() error {
		var err error
		if node.Cluster.CNI {
			err = l.askPlugin(l.ctx, node, due, req)
		} else {
			err = ask(l.ctx, socket, due, req)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.answeredLocked(state, due, req.UID, err)
		return nil
	})
}

// ask makes one request.
func ask(ctx context.Context, socket string, what request, req api.EndpointRequest) error {
	ctx, cancel := context.WithTimeout(ctx, requestPatience)
	defer cancel()
	agent := api.NewUnixClient(socket)
	defer agent.Close()
	if what == removeNetwork {
		return agent.Endpoints().Remove(ctx, req)
	}
	_, err := agent.Endpoints().Add(ctx, req)
	return err
}

// answeredLocked notes the answer to a request. An agent that does not take requests gives
// pods their networks by itself (--pods-from objects).
func (l *Lab) answeredLocked(state *podState, what request, uid string, err error) {
	r := &state.requests
	r.handled, r.lost = false, time.Time{}
	var refused *api.Error
	switch {
	case err != nil && (!errors.As(err, &refused) || refused.Status != http.StatusConflict):
		l.log.Debug("a pod's network was requested in vain", "pod", state.Full(), "request", what, "error", err)
		r.again = time.Now().Add(requestAgain)
	case what == addNetwork:
		r.added = uid
	case state.gone && state.uid == uid:
		l.forgetLocked(state)
	}
}

// forgetLocked forgets a pod that is gone, with its network.
func (l *Lab) forgetLocked(state *podState) {
	if l.pods[state.Full()] == state {
		delete(l.pods, state.Full())
	}
}
