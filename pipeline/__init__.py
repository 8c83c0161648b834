"""The flow of a task: composable stages, wired together per role of a process."""
