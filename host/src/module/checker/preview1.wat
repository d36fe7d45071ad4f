;; WASI preview 1 for core modules, answered inside the component.
;;
;; Nothing of the system is behind it: a virtual clock that sleeping moves, a
;; fixed random sequence, no files, no arguments, no environment. Standard
;; output and standard error go to the host, which makes lines of the log of
;; them. Every other function says that there is no such file.
;;
;; The stub only calls the host to print. A garbage collection inside the
;; guest's allocator may ask for the time, and a component may not call out at
;; that moment; it would trap.
(module
  (import "env" "memory" (memory 0))
  (import "foldstream:preview1/output@0.1.0" "write" (func $write (param i32 i32 i32)))

  ;; Where the host prints.
  (global $OUT i32 (i32.const 0))
  (global $ERR i32 (i32.const 1))
  ;; Error numbers of preview 1.
  (global $SUCCESS i32 (i32.const 0))
  (global $BADF i32 (i32.const 8))
  (global $NOENT i32 (i32.const 44))
  (global $NOTSUP i32 (i32.const 58))

  ;; Nanoseconds. It starts above zero, because some run-times take zero for
  ;; "not set", and moves a little with each look, so that waiting ends.
  (global $now (mut i64) (i64.const 1000000000))
  ;; State of the generator; any value but zero.
  (global $random (mut i64) (i64.const 0x2545F4914F6CDD1D))

  (func $next_random (result i64)
    (local $x i64)
    (local.set $x (global.get $random))
    (local.set $x (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 12))))
    (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 25))))
    (local.set $x (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 27))))
    (global.set $random (local.get $x))
    (i64.mul (local.get $x) (i64.const 0x2545F4914F6CDD1D)))

  (func (export "random_get") (param $at i32) (param $length i32) (result i32)
    (block $done
      (loop $more
        (br_if $done (i32.eqz (local.get $length)))
        (i32.store8 (local.get $at) (i32.wrap_i64 (i64.shr_u (call $next_random) (i64.const 32))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (local.set $length (i32.sub (local.get $length) (i32.const 1)))
        (br $more)))
    (global.get $SUCCESS))

  (func (export "clock_time_get") (param $clock i32) (param $precision i64) (param $result i32) (result i32)
    (global.set $now (i64.add (global.get $now) (i64.const 1000)))
    (i64.store (local.get $result) (global.get $now))
    (global.get $SUCCESS))

  (func (export "clock_res_get") (param $clock i32) (param $result i32) (result i32)
    (i64.store (local.get $result) (i64.const 1000))
    (global.get $SUCCESS))

  ;; Waits for the first subscription only, and is through with it at once. A
  ;; subscription has its user data at 0, its kind at 8, and for a clock the
  ;; time-out at 24 and the flags at 40; bit 0 of them means an absolute time.
  (func (export "poll_oneoff") (param $in i32) (param $out i32) (param $count i32) (param $result i32) (result i32)
    (local $until i64)
    (if (i32.eqz (local.get $count))
      (then
        (i32.store (local.get $result) (i32.const 0))
        (return (global.get $SUCCESS))))
    (i64.store (local.get $out) (i64.load (local.get $in)))
    (i32.store16 offset=8 (local.get $out) (i32.const 0))
    (i32.store8 offset=10 (local.get $out) (i32.load8_u offset=8 (local.get $in)))
    (i64.store offset=16 (local.get $out) (i64.const 0))
    (i64.store offset=24 (local.get $out) (i64.const 0))
    (if (i32.eqz (i32.load8_u offset=8 (local.get $in)))
      (then
        (local.set $until (i64.load offset=24 (local.get $in)))
        (if (i32.eqz (i32.and (i32.load16_u offset=40 (local.get $in)) (i32.const 1)))
          (then (local.set $until (i64.add (global.get $now) (local.get $until)))))
        (if (i64.gt_u (local.get $until) (global.get $now))
          (then (global.set $now (local.get $until))))))
    (i32.store (local.get $result) (i32.const 1))
    (global.get $SUCCESS))

  ;; Some run-times write a line in many pieces, so the host finds the lines.
  (func (export "fd_write") (param $fd i32) (param $pieces i32) (param $count i32) (param $result i32) (result i32)
    (local $total i32)
    (local $length i32)
    (if (i32.or (i32.lt_u (local.get $fd) (i32.const 1)) (i32.gt_u (local.get $fd) (i32.const 2)))
      (then (return (global.get $BADF))))
    (block $done
      (loop $more
        (br_if $done (i32.eqz (local.get $count)))
        (local.set $length (i32.load offset=4 (local.get $pieces)))
        (if (local.get $length)
          (then
            (call $write
              (select (global.get $ERR) (global.get $OUT) (i32.eq (local.get $fd) (i32.const 2)))
              (i32.load (local.get $pieces))
              (local.get $length))))
        (local.set $total (i32.add (local.get $total) (local.get $length)))
        (local.set $pieces (i32.add (local.get $pieces) (i32.const 8)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $more)))
    (i32.store (local.get $result) (local.get $total))
    (global.get $SUCCESS))

  (func $none (param $count i32) (param $size i32) (result i32)
    (i32.store (local.get $count) (i32.const 0))
    (i32.store (local.get $size) (i32.const 0))
    (global.get $SUCCESS))
  (export "args_sizes_get" (func $none))
  (export "environ_sizes_get" (func $none))
  (func $nothing (param i32 i32) (result i32) (global.get $SUCCESS))
  (export "args_get" (func $nothing))
  (export "environ_get" (func $nothing))
  (func (export "sched_yield") (result i32) (global.get $SUCCESS))
  (func (export "proc_exit") (param i32) (unreachable))
  (func (export "proc_raise") (param i32) (result i32) (unreachable))

  ;; The three standard streams are character devices; nothing else is open. A
  ;; description has its kind at 0, its flags at 2, and rights at 8 and 16.
  (func (export "fd_fdstat_get") (param $fd i32) (param $result i32) (result i32)
    (if (i32.gt_u (local.get $fd) (i32.const 2)) (then (return (global.get $BADF))))
    (i64.store (local.get $result) (i64.const 0))
    (i32.store8 (local.get $result) (i32.const 2))
    (i64.store offset=8 (local.get $result) (i64.const 0x40))
    (i64.store offset=16 (local.get $result) (i64.const 0))
    (global.get $SUCCESS))
  (func (export "fd_fdstat_set_flags") (param $fd i32) (param i32) (result i32)
    (select (global.get $BADF) (global.get $SUCCESS) (i32.gt_u (local.get $fd) (i32.const 2))))
  ;; Standard input is at its end.
  (func (export "fd_read") (param $fd i32) (param i32 i32) (param $result i32) (result i32)
    (if (local.get $fd) (then (return (global.get $BADF))))
    (i32.store (local.get $result) (i32.const 0))
    (global.get $SUCCESS))
  (func (export "fd_close") (param $fd i32) (result i32)
    (select (global.get $BADF) (global.get $SUCCESS) (i32.gt_u (local.get $fd) (i32.const 2))))

  (func $badf1 (param i32) (result i32) (global.get $BADF))
  (export "fd_datasync" (func $badf1))
  (export "fd_sync" (func $badf1))
  (func $badf2 (param i32 i32) (result i32) (global.get $BADF))
  (export "fd_filestat_get" (func $badf2))
  (export "fd_prestat_get" (func $badf2))
  (export "fd_renumber" (func $badf2))
  (export "fd_tell" (func $badf2))
  (func (export "fd_prestat_dir_name") (param i32 i32 i32) (result i32) (global.get $BADF))
  (func (export "fd_seek") (param i32 i64 i32 i32) (result i32) (global.get $BADF))
  (func (export "fd_advise") (param i32 i64 i64 i32) (result i32) (global.get $BADF))
  (func (export "fd_allocate") (param i32 i64 i64) (result i32) (global.get $BADF))
  (func (export "fd_fdstat_set_rights") (param i32 i64 i64) (result i32) (global.get $BADF))
  (func (export "fd_filestat_set_size") (param i32 i64) (result i32) (global.get $BADF))
  (func (export "fd_filestat_set_times") (param i32 i64 i64 i32) (result i32) (global.get $BADF))
  (func $badf_io (param i32 i32 i32 i64 i32) (result i32) (global.get $BADF))
  (export "fd_pread" (func $badf_io))
  (export "fd_pwrite" (func $badf_io))
  (export "fd_readdir" (func $badf_io))

  (func (export "path_open") (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32) (global.get $NOENT))
  (func (export "path_filestat_get") (param i32 i32 i32 i32 i32) (result i32) (global.get $NOENT))
  (func (export "path_filestat_set_times") (param i32 i32 i32 i32 i64 i64 i32) (result i32) (global.get $NOENT))
  (func $noent3 (param i32 i32 i32) (result i32) (global.get $NOENT))
  (export "path_create_directory" (func $noent3))
  (export "path_remove_directory" (func $noent3))
  (export "path_unlink_file" (func $noent3))
  (func (export "path_symlink") (param i32 i32 i32 i32 i32) (result i32) (global.get $NOENT))
  (func $noent6 (param i32 i32 i32 i32 i32 i32) (result i32) (global.get $NOENT))
  (export "path_readlink" (func $noent6))
  (export "path_rename" (func $noent6))
  (func (export "path_link") (param i32 i32 i32 i32 i32 i32 i32) (result i32) (global.get $NOENT))

  (func (export "sock_accept") (param i32 i32 i32) (result i32) (global.get $NOTSUP))
  (func (export "sock_recv") (param i32 i32 i32 i32 i32 i32) (result i32) (global.get $NOTSUP))
  (func (export "sock_send") (param i32 i32 i32 i32 i32) (result i32) (global.get $NOTSUP))
  (func (export "sock_shutdown") (param i32 i32) (result i32) (global.get $NOTSUP))
)
