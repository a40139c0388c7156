package server

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// dpPortDelta is the distance from the HTTP port to the first of the ports that the processes of a server with data-parallel
// attention talk over, and dpPorts their number (SGLang 0.5.15 to 0.5.23, server_args.py, PortArgs.init_new; plus one for
// each rank with the Rust front end).
const (
	dpPortDelta = 233
	dpPorts     = 7
)

// internalPortTexts are of ports other than the HTTP server's: torch's rendezvous, ZeroMQ, and SGLang's own look beforehand
// (utils/network.py, wait_port_available; server_args.py).
var internalPortTexts = []string{"EADDRINUSE", "The server socket has failed to listen", "ZMQError: Address already in use",
	"Port is already in use. dist_init_port=", "is not available in ", "is used by a process already. process.name()="}

// portIn finds the port in a line about a port that is taken: "port: 18121", "nccl_port at 18121 is not available",
// "tcp://127.0.0.1:18121", "('127.0.0.1', 18121)".
var portIn = []*regexp.Regexp{
	regexp.MustCompile(`\bport: ?(\d+)`),
	regexp.MustCompile(`\b(?:port|port_base|\w+_port) at (\d+) is not available`),
	regexp.MustCompile(`tcp://[^\s'",]*:(\d+)`),
	regexp.MustCompile(`\('[^']*', (\d+)[,)]`),
	regexp.MustCompile(`\bport (\d+) is in use`),
	regexp.MustCompile(`\bnetwork address:? ?\[?[^\s]*\]?:(\d+)`),
}

// takenPort returns the port that one of the lines says is taken; 0 if none does.
func takenPort(lines []string) int {
	for _, pattern := range portIn {
		for _, line := range lines {
			if m := pattern.FindStringSubmatch(line); m != nil {
				port, _ := strconv.Atoi(m[1]) // an overlong number is no port
				return port
			}
		}
	}
	return 0
}

// internalPort reports whether a port other than the one of the HTTP server was taken.
func (e evidence) internalPort() bool {
	lines := e.find(internalPortTexts...)
	return len(lines) > 0 && (e.settings.port == 0 || takenPort(lines) != e.settings.port)
}

// internalPortAdvice says which port it was, what uses it and which argument moves it, as far as the log tells.
func internalPortAdvice(e evidence, lines []string) []string {
	port := takenPort(lines)
	text := strings.Join(lines, "\n")
	s := e.settings
	name := "an internal port (the lines do not say which)"
	if port > 0 {
		name = fmt.Sprintf("port %d", port)
	}
	again := "start it again: where no argument sets it, SGLang chooses another one"
	reserve := "keep such ports from other programs: sysctl net.ipv4.ip_local_reserved_ports"
	first := s.port + dpPortDelta
	if first+dpPorts > 65535 {
		first = s.port - dpPortDelta - dpPorts
	}
	switch {
	case s.bootstrapPort > 0 && port == s.bootstrapPort:
		return []string{name + " is disaggregation_bootstrap_port, which prefill servers listen on: set it to a free one"}
	case s.ncclPort > 0 && port == s.ncclPort:
		return []string{name + " is nccl_port, on which the ranks meet (torch's TCPStore): set it to a free one, or leave it out"}
	case s.distInit > 0 && port >= s.distInit && port <= s.distInit+dpPorts:
		return []string{name + fmt.Sprintf(" belongs to dist_init_addr, which takes %d to %d: set it to an address with free ones", s.distInit, s.distInit+dpPorts)}
	case s.dpAttention && s.port > 0 && port >= first && port < first+dpPorts+s.dpSize:
		return []string{name + fmt.Sprintf(" is one of those that data-parallel attention derives from the HTTP port %d, from %d on: choose a port with a gap of some hundreds to the other servers", s.port, first),
			"set dist_init_addr to an address of its own"}
	case containsAny(text, []string{"TCPStore", "DistNetworkError", "nccl_port", "The server socket has failed to listen"}):
		return []string{name + " is the one on which the ranks meet (torch's TCPStore), not the HTTP port: " + again, "set nccl_port to a free port", reserve}
	}
	return []string{name + " is one that SGLang's processes talk over, not the HTTP port: " + again, "set nccl_port or dist_init_addr if that is its port", reserve}
}
