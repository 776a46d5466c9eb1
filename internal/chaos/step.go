// Package chaos simulates a whole mesh in one process, under a clock that is a twin too:
// from one seed it draws what fails, heals and changes, and checks that the mesh keeps its
// promises.
//
// What runs is real but for its edges (see meshtest): no packet passes. The same seed gives
// the same steps; in which order goroutines run in between is up to Go. To replay one:
//
//	go test ./internal/chaos -run TestSeeds -seed 7 -v
//
// A file holds one idea: steps, the model of what is up that the next step is drawn by, the
// runner that carries steps out, and what is checked during and after them.
package chaos

import (
	"fmt"
	"strings"
	"time"
)

// Step is one thing that happens, and how much time passes then.
type Step struct {
	Do Verb
	// On is what it happens to: a cluster, a node or an API server; for links, from>to; for
	// peers, both.
	On string
	// With says more: a pod or policy, the fault of a link, or which kernel writes fail.
	With string
	Then time.Duration
}

// Verb is a kind of step.
type Verb string

// Verbs, in pairs of what fails and what heals it where there are two.
const (
	StopAgent  Verb = "stop the agent of"
	StartAgent Verb = "start the agent of"
	Reboot     Verb = "reboot"
	LoseNode   Verb = "reboot with an empty disk"
	CutAgent   Verb = "break the link to its store of"
	HealAgent  Verb = "mend the link to its store of"
	Isolate    Verb = "lose packets of"
	Join       Verb = "carry all packets of"
	FailKernel Verb = "let kernel writes fail on"
	MendKernel Verb = "let kernel writes succeed on"

	StopServer  Verb = "stop"
	KillServer  Verb = "kill"
	StartServer Verb = "start"
	LoseServer  Verb = "empty the disk of"
	CutServer   Verb = "break the link to its store of API server"
	HealServer  Verb = "mend the link to its store of API server"
	Depose      Verb = "end the leadership in"
	CutLeader   Verb = "for a while, break the link to its store of the leader of"
	Wait        Verb = "wait for"

	CutControl  Verb = "break the control link"
	HealControl Verb = "mend the control link"
	CutData     Verb = "lose all packets"
	HealData    Verb = "carry all packets"

	TakeStore      Verb = "take away the store of"
	GiveStore      Verb = "give back the store of"
	Compact        Verb = "compact the store of"
	Backup         Verb = "copy the store of"
	PutBack        Verb = "put back the copy of the store of"
	LoseStore      Verb = "lose the store, and restart the API servers, of"
	LoseIdentities Verb = "for a while, lose a peer's identities,"
	Meet           Verb = "make peers of"
	Part           Verb = "remove a peer from a cluster,"
	AddPod         Verb = "apply a pod in"
	DeletePod      Verb = "delete a pod in"
	AddPolicy      Verb = "apply a policy in"
	DropPolicy     Verb = "delete a policy in"
	AddService     Verb = "apply a service in"
	DropService    Verb = "delete a service in"
)

// changes reports whether a step is an operator's change of an object.
func (s Step) changes() bool {
	switch s.Do {
	case AddPod, DeletePod, AddPolicy, DropPolicy, AddService, DropService:
		return true
	}
	return false
}

func (s Step) String() string {
	words := []string{string(s.Do), s.On}
	if s.With != "" {
		words = append(words, "("+s.With+")")
	}
	return fmt.Sprintf("%s; %v pass", strings.Join(words, " "), s.Then)
}
