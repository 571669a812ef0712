"""A reranker for one's own PDFs: pages, questions, candidates, a teacher, stage 2, and a table before and after.

Everything that was finished lies in the output folder, and an interrupted run goes on from there.
"""
