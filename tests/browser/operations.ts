/** Every operation's tests as one page: `runTests()` runs them there. */
import "../activation_test.ts";
import "../add_test.ts";
import "../append_test.ts";
import "../argmax_test.ts";
import "../attention_test.ts";
import "../cross_entropy_test.ts";
import "../delta_weight_test.ts";
import "../embedding_test.ts";
import "../errors_test.ts";
import "../handles_test.ts";
import "../layer_norm_test.ts";
import "../linear_backward_test.ts";
import "../linear_test.ts";
import "../memory_test.ts";
import "../merge_test.ts";
import "../rms_norm_test.ts";
import "../rope_test.ts";
import "../row_operations_test.ts";
import "../sample_test.ts";
import "../silu_mul_test.ts";
import "../take_rows_test.ts";
import "../webgpu_failure_test.ts";
import "../webgpu_limits_test.ts";
import "../webgpu_open_test.ts";
import "../weight_test.ts";
import { runAll } from "./node_test.ts";

Object.assign(globalThis, { runTests: runAll });
