# Waits for the end of its input, that is of the program that launched a server, and then removes the server:
# its processes, its files in /dev/shm, its folder and its control group. That program kills it when there is nothing
# to wait for.
#   $1  NAME=VALUE in the environment of the server's processes
#   $2  the server's folder
#   $3  its control group, empty if there is none
# The input has lines of numbers only, which no name of a file can add to:
#   leader PID START   the main process, and when the kernel started it
#   lock MAJ:MIN:INO   the lock of a log, shown with each output to it
#   device MAJ:MIN     of /dev/shm
#   not INO...         files in /dev/shm that are others'
#   ours INO...        files in /dev/shm that are the server's
trap '' HUP INT QUIT TERM PIPE
marker=$1 folder=$2 cgroup=$3
leader= start= locks= device= not=' ' ours=' '
while read -r what value rest; do
	case $what in
	leader) leader=$value start=$rest ;;
	lock) locks="$locks|$value" ;;
	device) device=$value ;;
	not) not="$not$value $rest " ;;
	ours) ours="$ours$value $rest " ;;
	esac
done
locks=${locks#|}

# Sets state, pgrp and started of a process. The kernel escapes line feeds in the name that precedes them.
read_stat() {
	{ IFS= read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
	set -- ${line##*) }
	state=$1 pgrp=$3 started=${20}
}

# The members, as PID:START: of the process group, or with the marker, or with a locked log as an output, or in the
# control group (see identity in Go). The group's number is the group's as long as its leader has it, or a process that is
# known otherwise to be the server's is in it.
known=' '
find_members() {
	members= group= pinned=
	marked="
$(grep -lF -- "$marker" /proc/[0-9]*/environ 2>/dev/null)
" # one grep for all: a host can have thousands of processes
	logging="
$([ -n "$locks" ] && grep -lE -- "^lock:.*FLOCK .* WRITE .* ($locks) " /proc/[0-9]*/fdinfo/[12] 2>/dev/null)
"
	inside=' '
	if [ -n "$cgroup" ]; then
		for list in "$cgroup/cgroup.procs" "$cgroup"/*/cgroup.procs; do
			while read -r pid; do inside="$inside$pid "; done <"$list"
		done 2>/dev/null
	fi
	for dir in /proc/[0-9]*; do
		pid=${dir#/proc/}
		[ "$pid" = $$ ] && continue
		read_stat "$pid" || continue
		[ "$pid:$started" = "$leader:$start" ] && pinned=yes
		case $state in Z | X) continue ;; esac
		process=$pid:$started found=
		case $known in *" $process "*) found=yes ;; esac
		case $inside in *" $pid "*) found=yes ;; esac
		case $marked in *"
$dir/environ
"*) found=yes ;; esac
		case $logging in *"
$dir/fdinfo/"[12]"
"*) found=yes ;; esac
		if [ -n "$leader" ] && [ "$pgrp" = "$leader" ]; then
			group="$group $process"
			[ -n "$found" ] && pinned=yes
		elif [ -n "$found" ]; then
			members="$members $process"
		fi
	done
	[ -n "$pinned" ] && members="$members$group"
	for process in $members; do
		case $known in *" $process "*) ;; *) known="$known$process " ;; esac
	done
}

# Sends a signal to each member that is still the process that was found.
signal_members() {
	for process in $members; do
		read_stat "${process%:*}" && [ "$started" = "${process#*:}" ] && kill "-$1" "${process%:*}" 2>/dev/null
	done
}

# Whether an entry of /dev/shm is a regular file or a folder, with its inode and user.
read_entry() {
	[ -h "$1" ] && return 1
	[ -f "$1" ] || [ -d "$1" ] || return 1
	IFS=' ' read -r inode mode links user line <<END
$(ls -din -- "$1" 2>/dev/null)
END
	[ -n "$inode" ]
}

# Prints those of the descriptors in the given folders that are of files in /dev/shm,
# with what their mode must begin with.
shared_descriptors() {
	mode=$1
	shift
	dir=$1 # ls names it only where there are several
	ls -lq "$@" 2>/dev/null | while read -r line; do
		case $line in
		/proc/*/fd:) dir=${line%:} ;;
		l$mode*' -> /dev/shm/'*)
			line=${line%% -> /dev/shm/*}
			echo "$dir/${line##* }"
			;;
		esac
	done
}

# Adds to ours the new files in /dev/shm that a member has open or mapped to write, or that tell a member in their
# names, and that no other process has.
find_shared() {
	new=
	for file in /dev/shm/* /dev/shm/.[!.]*; do
		read_entry "$file" || continue
		case $not$ours in *" $inode "*) ;; *) new=yes ;; esac
	done
	[ -n "$new" ] && [ -n "$device" ] || return 0
	pids=' ' theirs= others=
	for process in $members; do
		pids="$pids${process%:*} "
		theirs="$theirs /proc/${process%:*}/fd"
	done
	for dir in /proc/[0-9]*; do
		case $pids in *" ${dir#/proc/} "*) ;; *) others="$others $dir/fd" ;; esac
	done
	descriptors=$(shared_descriptors '?w' $theirs) foreign=
	for file in /dev/shm/* /dev/shm/.[!.]*; do
		read_entry "$file" || continue
		case $not$ours in *" $inode "*) continue ;; esac
		found=
		for pid in $pids; do
			owner=$(ls -dn "/proc/$pid" 2>/dev/null | { read -r line line owner line; echo "$owner"; })
			[ "$owner" = "$user" ] || [ "$owner" = 0 ] || continue
			case ${file##*/} in
			sgl_shm_*_"$pid"_* | multi_tokenizer_args_"$pid" | sem.loky-"$pid"-* | torch_"$pid"_* | joblib_memmapping_folder_"$pid"_*) found=yes ;;
			esac
			if [ -f "$file" ] && [ -z "$found" ]; then
				grep -qE -- " rw-s [0-9a-f]+ $device $inode +/dev/shm/" "/proc/$pid/maps" 2>/dev/null && found=yes
				for fd in $descriptors; do
					case $fd in "/proc/$pid/"*) [ "$file" -ef "$fd" ] && found=yes ;; esac
				done
			fi
			[ -n "$found" ] && break
		done
		[ -n "$found" ] || continue
		for maps in $(grep -lE -- " $device $inode +/dev/shm/" /proc/[0-9]*/maps 2>/dev/null); do
			maps=${maps%/maps}
			case $pids in *" ${maps#/proc/} "*) ;; *) continue 2 ;; esac
		done
		[ -n "$foreign" ] || foreign="$(shared_descriptors '' $others) -"
		for fd in $foreign; do
			[ "$file" -ef "$fd" ] && continue 2
		done
		ours="$ours$inode "
	done
}

remove_shared() {
	for file in /dev/shm/* /dev/shm/.[!.]*; do
		read_entry "$file" || continue
		case $ours in *" $inode "*) rm -rf -- "$file" ;; esac
	done
}

find_members
signal_members STOP # while their files are read
find_shared
tries=0 empty=0
while [ $tries -lt 300 ]; do # 30 s, as a GPU driver can hold a process
	tries=$((tries + 1))
	if [ -n "$cgroup" ] && [ -f "$cgroup/cgroup.kill" ]; then echo 1 >"$cgroup/cgroup.kill"; fi 2>/dev/null
	signal_members KILL
	sleep 0.1
	find_members
	if [ -n "$members" ]; then empty=0; else empty=$((empty + 1)); fi
	[ $empty -eq 2 ] && break # twice: the server may have been about to start
done
remove_shared
rm -rf -- "$folder"
if [ -n "$cgroup" ]; then
	for dir in "$cgroup"/*/ "$cgroup"; do
		[ -d "$dir" ] && rmdir -- "$dir"
	done
fi 2>/dev/null
exit 0
