//go:build !race

package chaos

// ordinary is how many seeds a test run has: two long ones among them.
const ordinary = 16
