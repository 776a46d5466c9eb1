package main

import (
	"slices"
	"testing"

	agent "github.com/weft-mesh/weft/meshagent/tables"
)

func TestTheHelpNamesEveryTable(t *testing.T) {
	var want []string
	for _, s := range agent.New().Summaries() {
		want = append(want, s.Name)
	}
	if !slices.Equal(tableNames, want) {
		t.Errorf("the help names %v, an agent has %v", tableNames, want)
	}
}
