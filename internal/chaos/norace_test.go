//go:build !race

package chaos

// ordinary is how many seeds a test run has: a minute's worth on one core.
const ordinary = 20
